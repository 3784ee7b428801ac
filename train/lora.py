"""Low-rank adaptation (LoRA, arXiv 2106.09685) of any parameter tree, as plain functions.

A kernel W [..., out] is read as a matrix [in, out] (a convolution's window and inputs together) and
becomes W + scale * down @ up with down [in, rank] and up [rank, out]. Networks know nothing of it:
`merge` gives a tree like the one they take, and gradients flow through it to the two factors.

`adapted` makes of any task one that trains such factors of what it trained before:

    task = adapted(task, cfg)    # cfg.lora: rank, alpha, match; scale = alpha / rank
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import params as trees
from mv2_jax.diffusion import keys
from mv2_jax.errors import InputError
from mv2_jax.train import chosen
from mv2_jax.train.task import Batch, Params, Task


def init(key: jax.Array, tree: Params, rank: int, match: str = "") -> Params:
    """Fresh factors for the kernels of `tree` whose path `match` (a regular expression) finds.

    `up` starts at zero, so that at first the merged tree is the tree itself.

    Returns:
        A tree with {"down": [in, rank], "up": [rank, out]} fp32 in the place of each such kernel.

    Raises:
        ValueError: a rank below 1, or no kernel is found.
    """
    if rank < 1:
        raise ValueError(f"the rank of a LoRA is 1 or more, not {rank}")
    paths = kernels(tree, match)
    if not paths:
        raise ValueError(f"no kernel's path matches {match!r}")
    return fresh(key, tree, rank, paths)


def fresh(key: jax.Array, tree: Params, rank: int, paths: Iterable[str]) -> Params:
    """`init` for kernels that are named."""
    leaves, factors = trees.flatten(tree), {}
    for path in paths:
        inputs = math.prod(leaves[path].shape[:-1])
        down = jax.random.normal(keys.fold(key, path), (inputs, rank)) / math.sqrt(inputs)
        factors[f"{path}/down"] = down
        factors[f"{path}/up"] = jnp.zeros((rank, leaves[path].shape[-1]))
    return trees.unflatten(factors)


def kernels(tree: Params, match: str = "") -> list[str]:
    """Paths of the kernels that `match` finds."""
    return [
        path
        for path, leaf in trees.flatten(tree).items()
        if path.endswith("kernel") and leaf.ndim >= 2 and re.search(match, path)
    ]


def merge(
    tree: Params, factors: Params, scale: float | jax.Array = 1.0, dtype: Any = None
) -> Params:
    """`tree` with the products of `factors` (from `init`) added to its kernels.

    Args:
        dtype: of the changed kernels, such as fp32 over a tree in half precision, which would round
            small changes away; None: the kernels' own.

    Raises:
        ValueError: factors of a kernel that the tree does not have.
    """
    leaves, flat = dict(trees.flatten(tree)), trees.flatten(factors)
    for path in sorted({name.rpartition("/")[0] for name in flat}):
        if path not in leaves:
            raise ValueError(f"the tree has no kernel {path!r} for these LoRA factors")
        kernel = jnp.asarray(leaves[path])
        kind = kernel.dtype if dtype is None else dtype
        change = flat[f"{path}/down"] @ flat[f"{path}/up"]
        leaves[path] = kernel.astype(kind) + (scale * change.reshape(kernel.shape)).astype(kind)
    return trees.unflatten(leaves)


def adapted(task: Task, cfg: Any) -> Task:
    """The task that trains factors of the kernels that `task` trains, by a phase's settings.

    Its trained trees are frozen as they begin, and handed to `loss` merged. `cfg.lora.match` is
    searched for in "tree/path/of/the/kernel"; `cfg.train` may restrict a tree likewise
    (`train.chosen`).

    Raises:
        InputError: a rank below 1, or a tree of which no kernel is found.
    """
    settings = cfg.lora
    if settings.rank < 1:
        raise InputError(f"lora.rank is {settings.rank}: it must be 1 or more, or 0 for no LoRA")
    alpha = settings.alpha or settings.rank
    base = task.init(keys.seed(cfg.seed))
    asked = cfg.get("train", ()) or tuple(base)
    patterns = {name: chosen.patterns(asked, name) for name in base}
    picked = [path for path in kernels(base, settings.match) if _asked(path, patterns)]
    for name in base:
        if not any(path.startswith(f"{name}/") for path in picked):
            raise InputError(
                f"lora.match: {settings.match!r} finds no kernel of {name!r}, such as "
                f"{name}/{next(iter(kernels(base[name])), '...')}; change it, or take {name!r} out "
                "of train"
            )

    def merged(factors: Params, frozen: Params) -> Params:
        held = {name: frozen[name] for name in base}
        return merge(held, factors, alpha / settings.rank, jnp.float32)

    def loss(factors: Params, frozen: Params, batch: Batch, key: jax.Array):
        return task.loss(merged(factors, frozen), frozen, batch, key)

    def error_at(factors: Params, frozen: Params, *rest: Any):
        return task.error_at(merged(factors, frozen), frozen, *rest)

    def whole(factors: Params) -> Params:
        return jax.tree.map(np.asarray, merged(factors, base))

    def outcome(factors: Params) -> str:
        return difference(task, base, whole(factors))

    def written(factors: Params, folder: Path) -> list[Path]:
        from mv2_jax.convert import lora_write

        configs, held = task.configs(base), task.components(base)
        made = task.components(factors)
        parts = {name: (made[name], held[name], configs[name]) for name in made}
        return lora_write.write(folder, parts, alpha)

    return dataclasses.replace(
        task,
        init=lambda key: fresh(key, base, settings.rank, picked),
        frozen={**task.frozen, **base},
        loss=loss,
        error_at=error_at if task.error_at else None,
        components=lambda factors: task.components(whole(factors)),
        configs=lambda factors: task.configs(base),
        sample=_over(task.sample, merged),
        outcome=outcome,
        files=written,
    )


def _asked(path: str, patterns: dict[str, tuple[str, ...]]) -> bool:
    name, _, inside = path.partition("/")
    return any(re.search(pattern, inside) for pattern in patterns[name])


def _over(sample: Callable[..., Any] | None, merged: Callable[..., Params]) -> Any:
    if sample is None:
        return None
    return lambda factors, frozen, key: sample(merged(factors, frozen), frozen, key)


def difference(task: Task, before: Params, after: Params) -> str:
    """A line on how far the network's answer to fixed noise is from what it was without the LoRA.

    Raises:
        InputError: not at all: the LoRA changes nothing.
    """
    if task.answer is None:
        return ""
    answers = [np.float64(task.answer(params, task.frozen)) for params in (before, after)]
    apart, size = np.mean(np.abs(answers[1] - answers[0])), np.mean(np.abs(answers[0]))
    if not apart > 0:
        raise InputError(
            "the LoRA changes nothing: the network answers fixed noise alike with and without it; "
            "raise optim.lr or train longer"
        )
    return (
        f"the LoRA moves the network's answer to fixed noise by {apart:.3g} on average, "
        f"{apart / max(size, 1e-12):.2%} of its size"
    )
