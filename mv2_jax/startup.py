"""The first word of a command whose libraries take seconds to load."""

from __future__ import annotations

import os
import sys


def loading(*libraries: str) -> None:
    """Says on standard error that libraries are loaded, where they are not yet: JAX, and those
    that are named too. Commands say it once their arguments are known to be right, and before they
    import anything large. Of several processes the first speaks.
    """
    if "jax" not in sys.modules and os.environ.get("JAX_PROCESS_ID", "0") == "0":
        print(f"mv2: loading {' and '.join(('JAX', *libraries))}", file=sys.stderr, flush=True)
