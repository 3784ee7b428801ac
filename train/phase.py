"""The settings that every phase of every recipe has."""

from __future__ import annotations

import contextlib
from typing import Any

from ml_collections import ConfigDict


def phase(task: str, **settings: Any) -> ConfigDict:
    """A phase's configuration: the defaults below, changed by `settings`.

    Settings that are dicts merge into the defaults of the same name; a name that is not here
    belongs to the task (`model`, `data`, `loss` ...).
    """
    cfg = ConfigDict(
        {
            "task": task,  # a module of mv2_jax.train.tasks
            "name": "",  # recipe/phase, filled in by the recipe
            "seed": 0,
            "steps": 1000,
            "max_minutes": 0.0,  # 0: no limit; counted over all resumed runs
            "batch": 16,
            "precision": "auto",  # auto, fp32 or bf16
            "remat": False,  # recompute UNet blocks in the backward pass: less memory
            "log_every": 50,
            "sample_minutes": 10.0,  # also redraws the curves; 0: at the end only
            "checkpoint_minutes": 10.0,  # 0: at the end only
            "mesh": {"data": 1, "fsdp": 1, "context": 1, "tensor": 1},  # all 1: one device
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
            },
            "ema": {"decay": 0.999, "warmup": True},
        }
    )
    for name, value in settings.items():
        if name in cfg and isinstance(cfg[name], ConfigDict):
            with cfg[name].unlocked():
                cfg[name].update(value)
        else:
            cfg[name] = value
    return cfg


def packing(**settings: Any) -> ConfigDict:
    """What to make of weights once a recipe's phases are done: a cascade folder, and a trial.

    Raises:
        KeyError: a name that is not below.
    """
    cfg = ConfigDict(
        {
            "sources": (),  # recipes (or phases, or folders) whose weights go in, in this order
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
    return made
