"""What of a stage is trained: whole trees, or the leaves of a tree that a pattern finds.

A phase's `train` names trees ("motion", "control"); "spatial/attn2" trains of the spatial tree
the leaves alone whose path the regular expression behind the first slash finds. All else is frozen:
it gets no gradient and has no state in the optimiser.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mv2_jax import params as trees
from mv2_jax.diffusion import keys
from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest, one_of
from mv2_jax.train.task import Batch, Params, Task

DTYPES = {"fp32": jnp.float32, "fp16": jnp.float16, "bf16": jnp.bfloat16}


def names(asked: Iterable[str]) -> tuple[str, ...]:
    """The trees that a phase's `train` speaks of, each once."""
    return tuple(dict.fromkeys(entry.partition("/")[0] for entry in asked))


def patterns(asked: Iterable[str], tree: str) -> tuple[str, ...]:
    """What is to be found in a tree's paths: "" is the whole tree."""
    split = (entry.partition("/") for entry in asked)
    return tuple(pattern for name, _, pattern in split if name == tree)


def check(asked: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """The trees of a phase's `train`, all of which are known.

    Raises:
        InputError: one is not, or a pattern is no regular expression.
    """
    found, known = names(asked), tuple(known)
    for name in found:
        if name not in known:
            raise InputError(f"train: there is no tree {name!r}{nearest(name, known)}")
        for pattern in patterns(asked, name):
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"train: {name}/{pattern}: {error}") from None
    return found


def restricted(task: Task, cfg: Any) -> Task:
    """The task, of whose trees no more is trained than the patterns in `cfg.train` find.

    Raises:
        InputError: a pattern finds nothing.
    """
    asked = cfg.get("train", ())
    if not any("/" in entry for entry in asked):
        return task
    base = task.init(keys.seed(cfg.seed))
    trained, rest = {}, {}
    for name, tree in base.items():
        wanted = patterns(asked, name)
        for pattern in wanted:
            if not any(re.search(pattern, path) for path in trees.flatten(tree)):
                raise InputError(
                    f"train: {pattern!r} finds nothing in {name!r}, whose leaves are called such "
                    f"as {next(iter(trees.flatten(tree)))}"
                )
        trained[name], rest[name] = trees.split(
            tree, lambda path, wanted=wanted: any(re.search(each, path) for each in wanted)
        )
    rest = {name: tree for name, tree in rest.items() if tree}

    def whole(params: Params, others: Params) -> Params:
        return {
            name: trees.merge(tree, others[name]) if name in rest else tree
            for name, tree in params.items()
        }

    def loss(params: Params, frozen: Params, batch: Batch, key: jax.Array):
        return task.loss(whole(params, frozen), frozen, batch, key)

    def error_at(params: Params, frozen: Params, *rest: Any):
        return task.error_at(whole(params, frozen), frozen, *rest)

    def sample(params: Params, frozen: Params, key: jax.Array) -> Any:
        return task.sample(whole(params, frozen), frozen, key)

    def at_end(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params: function(whole(params, rest))

    return dataclasses.replace(
        task,
        init=lambda key: trained,
        frozen={**task.frozen, **rest},
        loss=loss,
        error_at=error_at if task.error_at else None,
        components=at_end(task.components),
        configs=at_end(task.configs),
        sample=sample if task.sample else None,
    )


def stored(task: Task, dtype: str) -> Task:
    """The task, whose frozen trees lie on the devices as `dtype`: "fp32", "fp16" or "bf16".

    Cascade folders hold fp16, so that "fp16" gives the numbers of "fp32" in half the memory.

    Raises:
        InputError: another word.
    """
    kind = DTYPES[one_of(dtype, DTYPES, "frozen_dtype")]
    if kind == jnp.float32:
        return task
    return dataclasses.replace(task, frozen=trees.cast(task.frozen, kind))
