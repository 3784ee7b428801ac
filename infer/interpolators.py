"""The frame interpolators that a person can name: `--vfi rife`, or a file of converted weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mv2_jax.config import nearest
from mv2_jax.errors import InputError

NAMES = ("rife", "none")
HELP = "rife, none or a .safetensors file of converted weights"


def check(name: str) -> str:
    """A name of `NAMES`, or a file that exists; loads nothing.

    Raises:
        InputError: it is neither.
    """
    if name in NAMES or Path(name).is_file():
        return name
    if Path(name).suffix:
        raise InputError(f"cannot read {name}: no such file")
    raise InputError(
        f"--vfi takes {', '.join(NAMES)} or a file{nearest(name, NAMES)}; not {name!r}"
    )


def load(name: str) -> tuple[dict[str, Any], Any]:
    """The parameters, as stored, and the config of a checked name other than "none".

    Raises:
        InputError: the file is damaged, or holds no interpolator.
    """
    from mv2_jax import params
    from mv2_jax.config import from_dict
    from mv2_jax.stages import interpolators, vfi

    if name == "rife":
        return vfi.shipped()
    try:
        cfg = from_dict(params.load_metadata(name)["config"])
        interpolators.kind(cfg)
        return params.load(name), cfg
    except KeyError:
        raise InputError(f"{name} does not say what network it is for") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot use {name}: {error}") from None
