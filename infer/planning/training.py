"""A whole training step of a diffusion stage, as the recipes in `configs.own` set it."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mv2_jax import sharding
from mv2_jax.cascade import Cascade
from mv2_jax.diffusion import keys
from mv2_jax.errors import InputError
from mv2_jax.infer.planning import recorded
from mv2_jax.infer.planning.recorded import AnyMesh, Program
from mv2_jax.stages import stage as stages
from mv2_jax.train import optim
from mv2_jax.train.state import State, create, make_step
from mv2_jax.train.task import Task

NAME = "training step"


def recipe(stage: str) -> Any:
    """The phase of `configs.own` that trains a stage."""
    made = importlib.import_module(f"mv2_jax.configs.own.{stage}").get_config()
    return made.phases[made.order[-1]]


def step(four: Cascade, stage: str, mesh: AnyMesh, batch: int | None, dtype: Any) -> Program:
    """Forwards, backwards and the optimiser's update over a batch of latents, jitted and traced.

    What is trained is fp32, like its averages and moments; so is what stands still, as in training.

    Args:
        batch: clips, the recipe's where None.

    Raises:
        InputError: the stage has nothing that the recipe trains.
    """
    cfg = recipe(stage)
    own = four.stage(stage)
    net = stages.Config(
        own.name, own.stage, own.conditions, own.factor, jnp.dtype(dtype), bool(cfg.remat)
    )
    rows = batch or cfg.batch
    trees = {name: jax.tree.map(_full, tree) for name, tree in four.parameters(stage).items()}
    trained = {name: tree for name, tree in trees.items() if name in cfg.train}
    if not trained:
        raise InputError(f"--train: {stage} has no {', '.join(cfg.train)} to train")
    frozen = {name: tree for name, tree in trees.items() if name not in trained}

    def loss(params: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
        return stages.loss({**frozen, **params}, net, batch, key)

    tx = optim.transformation(cfg.optim)
    task = Task(lambda key: trained, frozen, loss, lambda seed, start: iter(()), dict, dict)
    plain = jax.eval_shape(lambda tree: create(tree, tx), _plain(trained))
    state = _laid(plain, mesh, stages.rules(net))
    out = (jax.tree.map(lambda leaf: leaf.sharding, state), None) if mesh.size > 1 else None
    jitted = jax.jit(make_step(task, tx, cfg), donate_argnums=0, out_shardings=out)
    key = jax.eval_shape(lambda: keys.seed(0))
    args = (state, frozen, _batch(net, rows, mesh), _put(key, mesh), _put(jnp.float32(0), mesh))
    program = Program(stage, NAME, jitted, args, {})
    program.traced = recorded.trace(program, mesh)
    return program


def _batch(net: stages.Config, rows: int, mesh: AnyMesh) -> dict[str, Any]:
    """Latents and what the conditions need, samples split as in training."""
    lead = (rows, *net.latent_shape)
    made = {name: leaf for name, leaf in stages.blank(net, rows).items() if name != "negative"}
    made["latent"] = jax.ShapeDtypeStruct(lead, jnp.float32)
    if "ids" in made:
        ids = jax.tree.leaves(made["ids"])[0]
        made["ids"] = jax.ShapeDtypeStruct((rows, ids.shape[-1]), jnp.int32)
        made["null_ids"] = jax.ShapeDtypeStruct((ids.shape[-1],), jnp.int32)
    for name in ("image_scale", "control_scale"):
        made.pop(name, None)

    def place(name: str, leaf: Any) -> Any:
        split = name != "null_ids" and jnp.ndim(leaf) > 0 and leaf.shape[0] == rows
        spec = P(sharding.fit(sharding.SAMPLES, rows, mesh)) if split else P()
        return jax.ShapeDtypeStruct(
            jnp.shape(leaf), jnp.result_type(leaf), sharding=NamedSharding(mesh, spec)
        )

    return {name: jax.tree.map(lambda leaf, n=name: place(n, leaf), leaf)
            for name, leaf in made.items()}  # fmt: skip


def _laid(state: State, mesh: AnyMesh, rules: Any) -> State:
    """A state's shapes where training puts them: moments and averages as their parameters."""

    def one(path: Any, leaf: Any) -> Any:
        names = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
        spec = sharding.spec_for("/".join(names), leaf.shape, mesh, rules) if names else P()
        where = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree_util.tree_map_with_path(one, state)


def _full(leaf: Any) -> Any:
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    kind = jnp.float32 if floating else leaf.dtype
    return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=leaf.sharding)


def _plain(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _put(leaf: Any, mesh: AnyMesh) -> Any:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype, sharding=NamedSharding(mesh, P()))
