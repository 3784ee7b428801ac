"""The frame interpolators, a value each: all that the package asks of one.

`--vfi`, the cascade folder, `mv2 bench` and the recognition of public checkpoints read this table.
It imports neither JAX nor a network: functions are named as `module:name` texts.

An interpolator from outside the package is an `Interpolator` in anyone's module, given to `--vfi`
as `module:NAME`. Its config class names it in turn, so that files of its weights and cascade
folders find it again (see `docs/extending.md`):

    @dataclasses.dataclass(frozen=True)
    class BlendConfig:
        interpolator: ClassVar[str] = "my_lab.blend:BLEND"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from mv2_jax.config_vfi import (
    EDSCConfig,
    EMAVFIConfig,
    GANVFIConfig,
    MeanVFIConfig,
    RefinedRIFEConfig,
    RIFEConfig,
)
from mv2_jax.lookup import find


@dataclass(frozen=True)
class Interpolator:
    """One kind of interpolator. Functions are given themselves, or as `module:name` texts.

    Attributes:
        config: the class of its config, a frozen dataclass. Where that has a field or property
            `any_time` which is False, the network knows the middle between two frames alone.
        between: (params, cfg, first, second, times, *, dtype) -> new frames: two frames
            [P, H, W, 3] in [-1, 1] and times [P, K] in (0, 1) -> [P, K, H, W, 3] of their type.
        network: its Flax module's class, made as `network(cfg, dtype)`; None where it has none.
        shares: whether to ask for all the times between two frames at once: True of a network that
            finds once what a pair has whatever the time, and then makes one frame after the other,
            so that memory does not grow with their number. A function of the config may say it.
        fill: (params, cfg, frames, times, *, dtype) -> a whole clip, where gaps are not best filled
            one after the other; frames [B, T, H, W, 3], T and times of at least 2.
        weights: () -> (params, cfg) that come with it, for `--vfi NAME` without a file.
        complete: (params, cfg) -> (params, cfg), adds what files of its weights leave out.
        component: what a cascade folder calls it; "" where it is in none.
        how: in words, how one comes by weights.
        recognise: (tensors of a public checkpoint, any_time) -> (conversion rules, config), or
            None where they are another network's; for `mv2_jax.convert.vfi`.
    """

    config: type
    between: str | Callable[..., Any]
    network: str | type | None = None
    shares: bool | Callable[[Any], bool] = True
    fill: str | Callable[..., Any] | None = None
    weights: str | Callable[[], tuple[Any, Any]] | None = None
    complete: str | Callable[..., Any] | None = None
    component: str = ""
    how: str = ""
    recognise: str | Callable[..., Any] | None = None

    def part(self, name: str) -> Any:
        """An attribute, imported where it is a text; None where there is none."""
        held = getattr(self, name)
        return find(held, {}, f"interpolator's {name}") if isinstance(held, str) else held


@runtime_checkable
class OwnConfig(Protocol):
    """The config of an interpolator from outside the package: it names it."""

    interpolator: ClassVar[str | Interpolator]


Config = (
    RIFEConfig
    | RefinedRIFEConfig
    | EMAVFIConfig
    | GANVFIConfig
    | EDSCConfig
    | MeanVFIConfig
    | OwnConfig
)
"""The config of an interpolator: a class of `TABLE`'s, or one of one's own."""


def any_time(cfg: Config) -> bool:
    """Whether an interpolator knows any time between two frames, not their middle alone."""
    return bool(getattr(cfg, "any_time", True))


def shares(cfg: Config) -> bool:
    """Whether to ask an interpolator for all the times between two frames at once."""
    held = of(cfg).shares
    return bool(held(cfg)) if callable(held) else held


def _all_share(cfg: MeanVFIConfig) -> bool:
    return all(shares(member) for member in cfg.members)


# By what `--vfi` calls them; those without a component are named by a file of their weights alone.
TABLE: dict[str, Interpolator] = {
    "rife": Interpolator(
        RIFEConfig,
        "mv2_jax.stages.vfi:between",
        network="mv2_jax.models.rife:RIFE",
        shares=False,  # it has little to share, and makes all frames at a time
        fill="mv2_jax.stages.vfi:fill",
        weights="mv2_jax.stages.vfi:shipped",
        component="rife",
        recognise="mv2_jax.convert.vfi:recognise_rife",
    ),
    "ema": Interpolator(
        EMAVFIConfig,
        "mv2_jax.stages.vfi_ema:between",
        network="mv2_jax.models.ema_vfi:EMAVFI",
        component="vfi_ema",
        how="`mv2 convert ours_t.pkl -o ema.safetensors --any-time` converts the "
        "public ones, which their authors share",
        recognise="mv2_jax.convert.vfi:recognise_ema",
    ),
    "gan": Interpolator(
        GANVFIConfig,
        "mv2_jax.stages.vfi_gan:between",
        network="mv2_jax.models.gan_vfi:GANVFI",
        complete="mv2_jax.stages.vfi_gan:complete",
        component="vfi_gan",
        how="`mv2 train toybox/vfi`, or `mv2 train vfi --set data.root=FOLDER` on your own videos, "
        "leaves a file of them",
        recognise="mv2_jax.convert.vfi:recognise_ldmvfi",
    ),
    "rife40": Interpolator(
        RefinedRIFEConfig,
        "mv2_jax.stages.vfi_refined:between",
        network="mv2_jax.models.rife_refined:RefinedRIFE",
        weights="mv2_jax.stages.vfi_refined:shipped",
        recognise="mv2_jax.convert.vfi:recognise_refined",
    ),
    "edsc": Interpolator(
        EDSCConfig,
        "mv2_jax.stages.vfi_edsc:between",
        network="mv2_jax.models.edsc:EDSC",
        recognise="mv2_jax.convert.vfi:recognise_edsc",
    ),
    "mean": Interpolator(MeanVFIConfig, "mv2_jax.stages.vfi_mean:between", shares=_all_share),
}

HELD = {name: each.component for name, each in TABLE.items() if each.component}
# Of what a cascade folder holds, its cascade takes the first of these; where it holds none, the
# RIFE serves that ships with the package.
COMPONENTS = tuple(reversed(HELD.values()))


def is_component(name: str) -> bool:
    """Whether a component of a cascade folder makes frames between frames.

    Those from outside the package are called `vfi_` and a word of their own.
    """
    return name in COMPONENTS or name.startswith("vfi_")


def chosen(components: Iterable[str]) -> str | None:
    """Which of a cascade folder's components its cascade puts between frames."""
    names = list(components)
    own = [name for name in names if is_component(name) and name not in COMPONENTS]
    return next((name for name in (*own, *COMPONENTS) if name in names), None)


def named(name: str) -> Interpolator:
    """The interpolator of a name in the table, or of `module:NAME`.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    return find(name, TABLE, "interpolator", fits=Interpolator, wants="an Interpolator")


def of(cfg: Config) -> Interpolator:
    """The interpolator that a config describes.

    Raises:
        ValueError: no interpolator has such a config.
    """
    for each in TABLE.values():
        if each.config is type(cfg):
            return each
    own = getattr(type(cfg), "interpolator", None)
    if isinstance(own, str):
        own = named(own)
    if isinstance(own, Interpolator):
        return own
    known = ", ".join(each.config.__name__ for each in TABLE.values())
    raise ValueError(f"no interpolator has a {type(cfg).__name__}; there are {known}")


def complete(tree: Any, cfg: Config) -> tuple[Any, Config]:
    """Stored weights and their config, with what such files leave out.

    Raises:
        ValueError: the config is no interpolator's, or what is left out cannot be had.
    """
    add = of(cfg).part("complete")
    return add(tree, cfg) if add else (tree, cfg)
