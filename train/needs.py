"""What training needs beside the package, told before anything runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from mv2_jax.errors import InputError

MODULES = {"optax": "optax", "orbax-checkpoint": "orbax.checkpoint", "matplotlib": "matplotlib",
           "tensorboardX": "tensorboardX"}  # fmt: skip


DATA = {"grain": "grain"}


def check(command: str, modules: Mapping[str, str] = MODULES, extra: str = "train") -> None:
    """Refuses to begin where a package of an extra is missing.

    Args:
        modules: {package: the module of it that is looked for}.

    Raises:
        InputError: names them, and what to install.
    """
    missing = [package for package, module in modules.items() if not there(module)]
    if missing:
        raise InputError(f"{command} needs {', '.join(missing)}: pip install 'mv2-jax[{extra}]'")


def there(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there either
        return False
