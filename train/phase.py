"""The settings that every phase of every recipe has."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from mv2_jax.lookup import one_of

# As `models.unet.REMAT` has it: this module loads no JAX.
REMAT = ("levels", "units", "dots")
# Settings that change how a phase is run, not what comes of it; what it begins from is told by its
# digests.
RUNNING = ("name", "chain", "begin", "cascade", "log_every", "sample_minutes",
           "checkpoint_minutes", "keep", "keep_best", "reports", "profile", "mesh", "offload",
           "remat", "steps_per_call", "remat_policy", "data.threads", "data.ahead")  # fmt: skip
# What a person may change half-way besides: the loop itself asks for another optim.lr.
_OPTIM = ("lr", "warmup", "schedule", "clock", "decay_from", "final", "weight_decay", "b1", "b2",
          "eps", "clip", "accumulate")  # fmt: skip
ON_THE_WAY = (
    *RUNNING,
    "steps",
    "max_minutes",
    "precision",
    "validate",
    *(f"optim.{name}" for name in _OPTIM),
)


def phase(task: str, **settings: Any) -> ConfigDict:
    """A phase's configuration: the defaults below, changed by `settings`.

    Settings that are dicts merge into the defaults of the same name; a name that is not here
    belongs to the task (`model`, `data`, `loss` ...).
    """
    cfg = ConfigDict(
        {
            "task": task,  # of train.task.TASKS, or module:name
            "name": "",  # recipe/phase, filled in by the recipe
            "seed": 0,
            "steps": 1000,
            "max_minutes": 0.0,  # 0: no limit; counted over all resumed runs
            "batch": 16,
            "precision": "auto",  # auto, fp32 or bf16
            "remat": False,  # compute again in the backward pass what is not kept: less memory
            "remat_policy": "units",  # what: levels, units, or dots (units but for their products)
            "frozen_dtype": "fp32",  # of what is not trained: fp32, fp16 (as stored) or bf16
            # rank 0: none. alpha 0: the rank. match: a regular expression that finds kernels'
            # paths, tree first ("spatial/.*attn2"); empty: all of what `train` names.
            "lora": {"rank": 0, "alpha": 0.0, "match": ""},
            # So many steps are one call of the device, by a scan: for small networks on fast cards.
            "steps_per_call": 1,
            "log_every": 50,
            "sample_minutes": 10.0,  # also redraws the curves; 0: at the end only
            "checkpoint_minutes": 10.0,  # 0: before the first step and at the end only
            "reports": ("tensorboard",),  # also "wandb", or module:name; see train.boards
            "profile": "",  # steps to trace, as "20:25"
            "keep": 2,  # checkpoints, the newest ones
            "keep_best": 1,  # checkpoints beside them, those of the lowest mean loss
            "mesh": {"data": 1, "fsdp": 1, "context": 1, "tensor": 1},  # all 1: one device
            # What lies in the host's memory between steps: optimizer, averages, frozen.
            "offload": (),
            # A cascade folder: all of its components are begun from, and its stage's sizes hold.
            "cascade": "",
            "begin": {},  # component -> where from; see mv2_jax.train.recipe
            "optim": {
                "name": "adamw",  # or muon
                "lr": 3e-4,
                "warmup": 200,  # steps
                "schedule": "cosine",  # constant, cosine, linear, warmup_stable_decay
                "clock": "steps",  # what decays the rate: "steps", or "time" (max_minutes) too
                "decay_from": 0.7,  # of warmup_stable_decay, a share of the phase
                "final": 0.02,  # the last rate as a share of lr
                "weight_decay": 0.01,
                "b1": 0.9,
                "b2": 0.99,
                "eps": 1e-8,
                "clip": 1.0,  # global norm; 0: off
                "accumulate": 1,  # parts a batch is worked through in
                "states": "fp32",  # moments: fp32, bf16 or int8, for memory
            },
            # also: decays of further averages, kept beside the first. With validation the one of
            # the lowest error becomes the phase's weights.
            "ema": {"decay": 0.999, "warmup": True, "also": ()},
            # The error by timestep on samples and noise that stay the same; every: steps, 0: never.
            # root: where samples lie that are not trained on, as data.root does.
            "validate": {"every": 0, "batches": 4, "levels": 4, "root": ""},
        }
    )
    for name, value in settings.items():
        if name in cfg and isinstance(cfg[name], ConfigDict):
            with cfg[name].unlocked():
                cfg[name].update(value)
        else:
            cfg[name] = value
    return cfg


def seed_of(cfg: Any) -> int:
    """What a phase's draws are seeded with, 0..2^31-1: its seed and, in a chain, its name.

    By the seed alone the phases of a chain would see the same noise, captions and order one after
    the other. Arms keep the seed as it is, so that what is drawn does not tell them apart.
    """
    named = zlib.crc32(cfg.name.encode()) if cfg.get("chain", True) else 0
    return (cfg.seed + named) % 2**31


def remat(cfg: Any) -> str | bool:
    """What a stage's networks compute again, as `stages.build` takes it."""
    policy = cfg.remat_policy
    return policy if cfg.remat else False


def check(cfg: Any) -> None:
    """Refuses numbers that no task could use, before anything runs.

    Raises:
        ValueError: names the setting and what it may be.
    """
    if not 0 <= cfg.seed < 2**31:
        raise ValueError(f"seed is {cfg.seed}; it goes from 0 to {2**31 - 1}")
    one_of(cfg.remat_policy, REMAT, "remat_policy")
    lengths = (cfg.ema.decay, *cfg.ema.also)
    for name, decay in zip(("decay", *["also"] * len(cfg.ema.also)), lengths):
        if not (isinstance(decay, int | float) and 0 <= decay < 1):
            raise ValueError(f"ema.{name} is {decay!r}: it must be from 0 to below 1")
    if len({*lengths}) < len(lengths):
        raise ValueError(f"ema.also: {lengths} with ema.decay: each length once")
    for name, least in (("every", 0), ("batches", 1), ("levels", 1)):
        if cfg.validate[name] < least:
            raise ValueError(f"validate.{name} is {cfg.validate[name]}: it must be {least} or more")
    data = cfg.get("data", {})
    if "shard" not in data:
        return
    count, shard = data["count"], data["shard"]
    if count < 1 or shard < 1 or count % shard:
        raise ValueError(f"data.count: {count} samples do not divide into shards of {shard}")


def difference(old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str] = ()) -> str:
    """The first setting in which two phases' JSON-ready settings differ, such as "optim.lr 0.3, not
    0.1"; empty where none does.

    A setting that only one of the two has is no difference while it is off (0, empty). Those in
    `free` may differ ("data.threads" is `threads` below `data`).
    """
    for name in dict.fromkeys((*new, *old)):
        was, now = old.get(name), new.get(name)
        if name in free or was == now or not (was or now):
            continue
        nested = [value for value in (was, now) if isinstance(value, Mapping)]
        if len(nested) == 2 or (nested and None in (was, now)):
            below = [path.removeprefix(f"{name}.") for path in free if path.startswith(f"{name}.")]
            found = difference(was or {}, now or {}, below)
            if found:
                return f"{name}.{found}"
        else:
            return f"{name} {_said(was)}, not {_said(now)}"
    return ""


def _said(value: Any) -> str:
    return "unset" if value is None else repr(value)


def packing(**settings: Any) -> ConfigDict:
    """What to make of weights once a recipe's phases are done: a cascade folder, and a trial.

    Raises:
        KeyError: a name that is not below.
    """
    cfg = ConfigDict(
        {
            # Recipes, phases or folders (cascade folders too) whose weights go in, in this order.
            "sources": (),
            "into": "",  # the folder; empty: <runs>/<recipe>/cascade
            "name": "toybox",
            "licence": "Apache-2.0",
            "defaults": {"t2i": {}, "i2v": {}, "v2v": {}},  # the numbers these weights like best
            "prompt": "",  # a video to make with the folder; empty: none
        }
    ).lock()
    for name, value in settings.items():
        with cfg.unlocked() if name == "defaults" else contextlib.nullcontext():
            cfg[name] = ConfigDict(value) if name == "defaults" else value
    return cfg


def recipe(pack: ConfigDict | None = None, /, **phases: ConfigDict) -> ConfigDict:
    """A recipe: a chain of phases, run in the order given, and then `pack`, where there is one.

    Its `quick_compile` has XLA compile in half the time to programs that run slowly: right where
    a phase has a handful of steps.
    """
    cfg = {"order": tuple(phases), "phases": ConfigDict(phases), "quick_compile": False}
    return ConfigDict(cfg if pack is None else {**cfg, "pack": pack})


def arms(**phases: ConfigDict) -> ConfigDict:
    """A recipe whose phases do not build on each other: all begin alike, to be compared."""
    made = recipe(**phases)
    made.chain = False
    for name in made.order:
        made.phases[name].chain = False
    return made
