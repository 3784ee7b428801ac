"""What the training loop needs to know of a stage: the `Task`.

The loop owns optimisation, time, files and resumption; a task owns what is trained, on what, and
what it is called once it is done. A phase of a recipe names a task of `TASKS`, or `module:name` of
a function `make(cfg, begin, folder)` that builds one: `cfg` are the phase's settings, `begin` the
components it begins from, `folder` its own, for what it precomputes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.lookup import one_of
from mv2_jax.sharding import Rules
from mv2_jax.stages import stage

TASKS = {
    **{
        name: f"mv2_jax.train.tasks.{name}:make"
        for name in ("distil", "i2v", "t2i", "v2v", "vae", "vfi", "votes")
    },
    # Tasks that only a world has.
    **{name: f"mv2_jax.train.toybox.{name}:make" for name in ("dpo", "judge")},
}

Params = dict[str, Any]
Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


class Share(dict):
    """A batch of `rows` rows, of which it holds those that are this process's alone."""

    def __init__(self, batch: Batch, rows: int) -> None:
        super().__init__(batch)
        self.rows = rows


@dataclass(frozen=True)
class Component:
    """A named part of the cascade: its parameter tree and its config (see mv2_jax.config).

    `tokenizer` is, of a text encoder, the tokenizer that it was trained with, in JSON's form.
    """

    params: Params
    config: Any
    tokenizer: Any = None


@dataclass(frozen=True)
class Task:
    """One stage as the loop sees it.

    Attributes:
        init: key -> the trainable tree, fp32 (fresh, or the previous phase's weights).
        frozen: a tree handed to `loss` and never updated.
        loss: (params, frozen, batch, key) -> (scalar, scalar metrics); pure, jittable. It must be
            a mean over the batch for accumulation to equal one large batch.
        batches: (seed, start_step) -> an endless iterator of batches (dicts of arrays whose first
            axis is the batch). The batch of a step depends on the seed and the step alone, so that
            a resumed run sees what the uninterrupted one would have seen. Of several processes
            each yields the whole batch, or a `Share` of its own rows (`placement.own_rows`).
        components: params -> {component name: tree}, what the phase's weights hold.
        configs: params -> {component name: config dataclass}, for the same names; called once at
            the end, so it may measure (the VAE measures its scaling factor here).
        sample: (params, frozen, key) -> a sheet of samples, uint8 [H, W, 3], or `report.Moving`;
            None: no sheets.
        rules: sharding rows of its parameters beside `sharding.RULES`.
        notes: JSON-ready facts that packing needs: "stages" {name: config}, "tokenizer".
        error_at: (params, frozen, batch, key, u) -> the unweighted error at position u (0..1) of
            the process, conditions kept, for validation; None: it has none.
        held_out: as `batches`, of samples that are not trained on; None: there are none.
        answer: (params, frozen) -> what the network answers to fixed noise, an array.
        outcome: params -> a line on what came of it, printed at the end ("": none); an InputError
            where that is nothing, before any weights are written.
        files: (params, folder) -> further files written beside the weights, such as a LoRA's.
    """

    init: Callable[[jax.Array], Params]
    frozen: Params
    loss: Callable[[Params, Params, Batch, jax.Array], tuple[jax.Array, Metrics]]
    batches: Callable[[int, int], Iterator[Batch]]
    components: Callable[[Params], dict[str, Params]]
    configs: Callable[[Params], Mapping[str, Any]]
    sample: Callable[[Params, Params, jax.Array], Any] | None = None
    rules: Rules = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    error_at: Callable[[Params, Params, Batch, jax.Array, jax.Array], jax.Array] | None = None
    held_out: Callable[[int, int], Iterator[Batch]] | None = None
    answer: Callable[[Params, Params], np.ndarray] | None = None
    outcome: Callable[[Params], str] | None = None
    files: Callable[[Params, Path], list[Path]] | None = None


def require(begin: Mapping[str, Component], *names: str) -> list[Component]:
    """The named components a phase begins from.

    Raises:
        InputError: one is missing; the message says how to name its source.
    """
    for name in names:
        if name not in begin:
            raise InputError(
                f"this phase needs the component {name!r} to begin from: name its source with "
                f"--set \"begin={{'{name}': 'toybox/{name}'}}\""
            )
    return [begin[name] for name in names]


def chances(settings: Mapping[str, float], net: stage.Config) -> dict[str, float]:
    """How often each of a stage's conditions is dropped, of a recipe's `loss`."""
    return {name: settings[name] for name in stage.drops(net) if name in settings}


def compute_dtype(precision: str) -> Any:
    """The type networks compute in. Parameters and the optimiser's state are always fp32.

    "auto" is fp32 on CPUs, which gain nothing from half precision, and bf16 on accelerators.

    Raises:
        ValueError: an unknown word.
    """
    known = {
        "auto": jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16,
        "fp32": jnp.float32,
        "bf16": jnp.bfloat16,
    }
    return known[one_of(precision, known, "precision")]
