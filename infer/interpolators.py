"""The frame interpolators that a person can name: `--vfi rife`, or a file of converted weights.

Several names joined by "+" are all of them at once, the mean of what they make. `mv2 --help` reads
this, so NumPy is not imported before a name is looked up, nor JAX before `load`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mv2_jax.config import RIFEConfig, from_dict, nearest
from mv2_jax.config_vfi import MeanVFIConfig
from mv2_jax.errors import InputError

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle

NAMES = ("rife", "ema", "gan", "none")
HELP = "rife, ema, gan, none, or a .safetensors file of weights; A+B is the mean of both"
PUBLIC = (".pkl", ".pth", ".pt", ".ckpt")
# Names of what a cascade folder may hold, and how one comes by weights where it does not.
_HELD = {"ema": "vfi_ema", "gan": "vfi_gan"}
_HOW = {
    "ema": "`python -m mv2_jax.convert.vfi ours_t.pkl ema.safetensors --any-time` converts the "
    "public ones, which their authors share",
    "gan": "`mv2 train toybox/vfi`, or `mv2 train vfi --set data.root=FOLDER` on your own videos, "
    "leaves a file of them",
}


def check(name: str, bundle: Bundle | None = None) -> str:
    """The name, each of whose parts is in `NAMES` and to be had, or is a file; loads nothing.

    `bundle` is the cascade folder whose networks "ema" and "gan" are, by default the one that
    ships.

    Raises:
        InputError: no such name or file, or the folder has no such network.
    """
    names = parts(name)
    for part in names:
        if part in _HELD:
            folder = bundle or _shipped()
            if _HELD[part] not in folder.components:
                raise InputError(
                    f"--vfi {part}: {folder.folder} holds no such weights; {_HOW[part]}, and --vfi "
                    "takes the file"
                )
        elif part == "none" and len(names) > 1:
            raise InputError(f"--vfi {name}: none is no network and joins no other")
        elif part not in NAMES and not Path(part).is_file():
            if Path(part).suffix:
                raise InputError(f"cannot read {part}: no such file")
            raise InputError(
                f"--vfi takes {', '.join(NAMES)} or a file{nearest(part, NAMES)}; not {part!r}"
            )
    return name


def described(name: str, bundle: Bundle | None = None) -> Any:
    """The config of a checked name other than "none"; loads no parameters.

    Raises:
        InputError: a file is damaged, or says nothing of its network.
    """
    names = parts(name)
    if len(names) > 1:
        return MeanVFIConfig(tuple(described(part, bundle) for part in names))
    if name in _HELD:
        return (bundle or _shipped()).config(_HELD[name])
    if name == "rife":
        held = bundle is not None and "rife" in bundle.components
        return bundle.config("rife") if held else RIFEConfig()
    if Path(name).suffix in PUBLIC:
        raise InputError(
            f"{name} is PyTorch's; `python -m mv2_jax.convert.vfi {name} {Path(name).stem}"
            ".safetensors` makes a file of it that --vfi takes"
        )
    from mv2_jax import params

    try:
        return from_dict(params.load_metadata(name)["config"])
    except KeyError:
        raise InputError(f"{name} does not say what network it is for") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot use {name}: {error}") from None


def fits(name: str, times: int, flag: str, bundle: Bundle | None = None) -> None:
    """Whether a checked name other than "none" can make `times` frames of every one.

    Raises:
        InputError: it knows the middle between two frames alone, and `times` is no power of two;
            `flag` says by which number of what flag it could.
    """
    if times & (times - 1) and not getattr(described(name, bundle), "any_time", True):
        raise InputError(f"{name} knows the middle between two frames alone; use {flag}")


def load(name: str, bundle: Bundle | None = None) -> tuple[dict[str, Any], Any]:
    """The parameters, as stored, and the config of a checked name other than "none".

    Raises:
        InputError: the file is damaged, or holds no interpolator.
    """
    from mv2_jax import params
    from mv2_jax.stages import interpolators, vfi, vfi_gan

    names = parts(name)
    if len(names) > 1:
        trees, members = zip(*(load(part, bundle) for part in names))
        return {str(k): tree for k, tree in enumerate(trees)}, MeanVFIConfig(members)
    cfg = described(name, bundle)
    component = _HELD.get(name, name)
    try:
        if bundle is None and name in _HELD:
            bundle = _shipped()
        if bundle is not None and component in bundle.components:
            return vfi_gan.complete(bundle.load(component), cfg)
        if name == "rife":
            return vfi.shipped()
        interpolators.kind(cfg)
        return vfi_gan.complete(params.load(name), cfg)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot use {name}: {error}") from None


def _shipped() -> Bundle:
    from mv2_jax import bundle

    return bundle.read()


def parts(name: str) -> list[str]:
    """The names that "+" joins; a file whose own name has one in it is a single one."""
    return [name] if Path(name).is_file() else name.split("+")
