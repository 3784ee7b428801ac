"""What training needs beside the package, told before anything runs."""

from __future__ import annotations

import importlib.util

from mv2_jax.errors import InputError

MODULES = {"optax": "optax", "orbax-checkpoint": "orbax.checkpoint", "matplotlib": "matplotlib"}


def check(command: str) -> None:
    """Refuses to begin where a package of the extra `train` is missing.

    Raises:
        InputError: names them, and what to install.
    """
    missing = [package for package, module in MODULES.items() if not _there(module)]
    if missing:
        raise InputError(f"{command} needs {', '.join(missing)}: pip install 'mv2-jax[train]'")


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there either
        return False
