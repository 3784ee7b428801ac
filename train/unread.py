"""Settings of a phase that nothing reads, refused by name: the run would be the same without them.

Each task says which settings it reads and which of them change nothing as its stage is put
together (`refuse`); what every phase has is looked at for any task, one's own too (`check`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from mv2_jax import config
from mv2_jax.diffusion import losses
from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest
from mv2_jax.train import overrides, processes
from mv2_jax.train.media.settings import DEFAULTS
from mv2_jax.train.phase import phase
from mv2_jax.train.source import Source

_PHASE = overrides.leaves(phase(""))
# Those of every phase that not every task reads.
_OF_TASKS = ("precision", "remat", "remat_policy", "begin")
_EVERY = {*_PHASE, "chain", "cascade"} - {*_OF_TASKS}
_USUAL = {
    **_PHASE,
    **{f"data.{name}": value for name, value in DEFAULTS.items()},
    **{f"loss.shape.{name}": value for name, value in asdict(LossConfig()).items()},
    "size": (),
    "frames": 0,
}
"""What says nothing where it stands in a recipe: settings at their defaults."""


def off(cfg: Any) -> dict[str, str]:
    """{setting: why} of those that another setting of the phase switches off."""
    optim, data = cfg.optim, cfg.get("data", {})
    why = {}
    if optim.schedule != "warmup_stable_decay":
        why["optim.decay_from"] = f"optim.schedule is {optim.schedule!r}"
    if optim.schedule == "constant":
        why |= dict.fromkeys(("optim.final", "optim.clock"), "optim.schedule is 'constant'")
    if optim.name == "muon":
        why["optim.eps"] = "optim.name is 'muon'"
    if not cfg.lora.rank:
        why |= dict.fromkeys(("lora.alpha", "lora.match"), "lora.rank is 0")
    if "remat" in cfg and not cfg.remat:
        why["remat_policy"] = "remat is False"
    if not (cfg.ema.decay or cfg.ema.also):
        why["ema.warmup"] = "ema.decay is 0"
    if not cfg.validate.every:
        unused = ("validate.batches", "validate.levels", "validate.root")
        why |= dict.fromkeys(unused, "validate.every is 0")
    if not data.get("image_every"):
        why["data.image_batch"] = "data.image_every is 0"
    if data.get("fps", DEFAULTS["fps"]):
        why["data.stride"] = "data.fps says how far frames are apart; 0 leaves it to data.stride"
    if not data.get("aspects"):
        why |= dict.fromkeys(("data.aspect_step", "data.aspect_most"), "data.aspects is False")
    if not cfg.get("cascade"):
        told = "they change the sizes of a `cascade`, and this phase begins from none"
        why |= dict.fromkeys(("size", "frames"), told)
    return why


def check(cfg: Any) -> None:
    """Refuses what changes nothing in a phase of any task.

    Raises:
        InputError: names the setting and why; or an unknown one below `optim`, `ema` or `mesh`.
    """
    of_phase = {_branches(path)[0] for path in _EVERY}
    _refuse(cfg, {name for name in cfg if name not in of_phase}, off(cfg), cfg.task)


def refuse(
    cfg: Any,
    reads: Iterable[str],
    idle: Mapping[str, str] = {},
    source: Source | None = None,
    use: str = "clips",
) -> None:
    """Refuses settings of a phase that its task does not read.

    Args:
        reads: those that it reads beside every phase's own, "loss.kl" or, for all below, "loss".
        idle: {setting: why} of those that change nothing here.
        source: reads some of `data`, which it says itself (`Source.settings`).
        use: what the source is asked for.

    Raises:
        InputError: names the setting, and why or the nearest that is read.
    """
    wanted = {*reads}
    if source is not None:
        told = source.settings
        own = ["data"] if told is None else [f"data.{name}" for name in told.get(use, ())]
        wanted |= {"data.source", *own}
    _refuse(cfg, wanted, {**off(cfg), **idle}, cfg.task)


def _refuse(cfg: Any, reads: Collection[str], why: Mapping[str, str], task: str) -> None:
    reads = {*_EVERY, *reads}
    for path, value in overrides.leaves(cfg).items():
        if value is None or _same(value, _USUAL.get(path)):
            continue
        if path in why:
            raise InputError(f"{path} has no effect: {why[path]}")
        if reads.isdisjoint(_branches(path)):
            known = {branch for each in reads for branch in _branches(each)}
            lost = next((branch for branch in _branches(path) if branch not in known), path)
            raise InputError(f"task {task!r} reads no setting {lost!r}{nearest(lost, known)}")


def _branches(path: str) -> list[str]:
    """ "loss.shape.scale" -> "loss", "loss.shape" and itself."""
    words = path.split(".")
    return [".".join(words[: n + 1]) for n in range(len(words))]


def _same(value: Any, usual: Any) -> bool:
    """Whether a value is the usual one; an empty mapping says nothing, whatever is usual."""
    if hasattr(value, "keys"):
        return not len(value)
    return value == usual or (isinstance(value, tuple | list) and tuple(value) == usual)


def of_loss(shape: Any, process: Any) -> dict[str, str]:
    """{setting: why} of a loss's fields that its sampling and its weighting do not look at.

    Raises:
        InputError: its noise offset does not go with the process.
    """
    if not isinstance(shape, LossConfig):
        return {}
    losses.check_offset(shape, process)
    told = f"neither sampling {shape.sampling!r} nor weighting {shape.weighting!r} reads it"
    return {f"loss.shape.{name}": told for name in losses.unread(shape, process)}


def begun(cfg: Any, name: str, begins: Any, but: Collection[str] = ()) -> None:
    """Says which fields of a network's config in `model`, which is for one that is not begun from,
    differ from those of the one that training begins from, which hold.

    Args:
        name: the network's in `model`.
        begins: the config of the component that is begun from.
        but: fields that may differ.
    """
    if name not in cfg.get("model", {}):
        return
    asked = config.from_dict(cfg.model[name].to_dict())
    if type(asked) is not type(begins):
        kind = type(begins).__name__
        processes.say(f"model.{name} has no effect: training begins from weights of a {kind}")
        return
    for field, value in vars(asked).items():
        if field not in but and value != getattr(begins, field):
            processes.say(
                f"model.{name}.{field} ({value!r}) has no effect: training begins from weights of "
                f"{getattr(begins, field)!r}"
            )
