"""`python -m mv2_jax` is the `mv2` command."""

import sys

from mv2_jax.cli import main

sys.exit(main())
