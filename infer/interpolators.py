"""The frame interpolators that a person can name: `--vfi rife`, or a file of converted weights.

What there is stands in `stages.vfi_table`; `module:NAME` is an interpolator from anywhere. Several
names joined by "+" are all of them at once, the mean of what they make. `mv2 --help` reads this, so
NumPy is not imported before a name is looked up, nor JAX before `load`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mv2_jax.config import RIFEConfig, from_dict
from mv2_jax.config_vfi import MeanVFIConfig
from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest
from mv2_jax.stages import vfi_table

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle

BEST = "best"
_BOTH = ("rife", "rife40")  # whose mean it is
_COMES = tuple(name for name, each in vfi_table.TABLE.items() if each.component or each.weights)
NAMES = (*_COMES, BEST, "none")
HELP = (
    f"{', '.join(NAMES)}, a .safetensors file of weights, or your own module:name; A+B is the "
    "mean of both"
)
PUBLIC = (".pkl", ".pth", ".pt", ".ckpt")
# Names of what must be in a cascade folder, for it does not come with the package.
_HELD = {name: held for name, held in vfi_table.HELD.items() if not vfi_table.TABLE[name].weights}


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
                    f"--vfi {part}: {folder.folder} holds no such weights; "
                    f"{vfi_table.TABLE[part].how}, and --vfi takes the file"
                )
        elif part == "none" and len(names) > 1:
            raise InputError(f"--vfi {name}: none is no network and joins no other")
        elif not is_file(part) and is_outside(part):
            if vfi_table.named(part).weights is None:
                raise InputError(f"--vfi {part} has no weights of its own; name a file of them")
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
    if not is_file(name) and is_outside(name):
        return _own(name)[1]
    if name == "rife":
        held = bundle is not None and "rife" in bundle.components
        return bundle.config("rife") if held else RIFEConfig()
    if name in NAMES:
        return vfi_table.TABLE[name].config()
    if Path(name).suffix in PUBLIC:
        raise InputError(
            f"{name} is PyTorch's; `mv2 convert {name} -o {Path(name).stem}"
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
    if times & (times - 1) and not vfi_table.any_time(described(name, bundle)):
        raise InputError(f"{name} knows the middle between two frames alone; use {flag}")


def load(name: str, bundle: Bundle | None = None) -> tuple[dict[str, Any], Any]:
    """The parameters, as stored, and the config of a checked name other than "none".

    Raises:
        InputError: the file is damaged, or holds no interpolator.
    """
    from mv2_jax import params

    names = parts(name)
    if len(names) > 1:
        trees, members = zip(*(load(part, bundle) for part in names))
        return {str(k): tree for k, tree in enumerate(trees)}, MeanVFIConfig(members)
    if not is_file(name) and is_outside(name):
        return _own(name)
    cfg = described(name, bundle)
    component = _HELD.get(name, name)
    try:
        if bundle is None and name in _HELD:
            bundle = _shipped()
        if bundle is not None and component in bundle.components:
            return vfi_table.complete(bundle.load(component), cfg)
        if name in NAMES:
            return vfi_table.TABLE[name].part("weights")()
        vfi_table.of(cfg)  # before what may be a large file is read
        return vfi_table.complete(params.load(name), cfg)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot use {name}: {error}") from None


def _shipped() -> Bundle:
    from mv2_jax import bundle as bundles

    return bundles.read()


def _own(name: str) -> tuple[Any, Any]:
    """The parameters and config that come with an interpolator from outside."""
    made = vfi_table.named(name)
    tree, cfg = made.part("weights")()
    if not isinstance(cfg, made.config):
        raise InputError(
            f"--vfi {name}: its weights have a {type(cfg).__name__}, not a {made.config.__name__}"
        )
    return vfi_table.complete(tree, cfg)


def is_file(part: str) -> bool:
    """Whether a name is a file's, also where the file is gone."""
    return Path(part).is_file() or bool(Path(part).suffix and not is_outside(part))


def is_outside(part: str) -> bool:
    """Whether a name has the form `module:NAME`."""
    module, colon, name = part.partition(":")
    return bool(colon) and all(word.isidentifier() for word in (*module.split("."), name))


def parts(name: str) -> list[str]:
    """The names that "+" joins, "best" by what it stands for; a file whose own name has one in it
    is a single one."""
    if Path(name).is_file():
        return [name]
    return [each for part in name.split("+") for each in (_BOTH if part == BEST else (part,))]
