"""Compiled programs that say when they compile.

`jax.jit` compiles in silence within the first call. A person who waits for a minute is to know
what for, so `Programs` compiles ahead of the call and reports it through the same callback that
the stages report their steps through. It also asks a store, where it is given one, before it
compiles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from mv2_jax import compiler, sharding

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total); `stage` is "i2v", or "compiling i2v" while it compiles."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback that does nothing."""


class Store(Protocol):
    """Where compiled programs are kept: `infer.kept.Kept`, for the commands."""

    def name(
        self, function: Any, static: dict[str, Any], signature: Any, options: compiler.Options
    ) -> str | None:
        """The key of a program; None for one that cannot be kept."""

    def find(self, name: str) -> Any:
        """The compiled program of a key; None where there is none."""

    def compile(self, name: str, lowered: Any, options: compiler.Options) -> Any:
        """Compiles a lowered program with these options, and keeps it."""


class Programs:
    """Calls jitted functions; a call with new shapes or new static arguments compiles aloud.

    What `store` has is taken from it in silence, without a trace. Each program is compiled with the
    options that its parameters' widths call for (`mv2_jax.compiler`); within another's trace a
    function is called as it is, and becomes a part of that. With a `mesh` programs are for
    all of its devices, and what does not lie on it yet is put there, whole on each.
    """

    def __init__(self, store: Store | None = None, mesh: Mesh | None = None) -> None:
        self._compiled: dict[Any, Any] = {}
        self._store = store
        self.mesh = mesh

    def scope(self) -> Any:
        """The context that tracing and compiling belong in."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def __call__(
        self, stage: str, function: Any, *args: Any, progress: Progress = silent, **static: Any
    ) -> Any:
        """`function(*args, **static)`.

        Args:
            stage: what compilation is reported as.
            function: a `jax.jit` of a function whose static arguments are keywords, the same
                object from call to call.
            args: trees of arrays, all traced.
            static: hashable static arguments.
        """
        args = self.placed(args)
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args)):
            with self.scope():
                return function(*args, **static)
        shapes = signature(args)
        key = (function, tuple(sorted(static.items())), shapes)
        if key not in self._compiled:
            with self.scope():
                options = compiler.options(args)
            store = self._store
            name = store.name(function, static, shapes, options) if store else None
            program = store.find(name) if store and name else None
            if program is None:
                progress(f"compiling {stage}", 0, 1)
                with self.scope():
                    lowered = function.lower(*args, **static)
                    if store and name:
                        program = store.compile(name, lowered, options)
                    else:
                        program = lowered.compile(compiler_options=options)
                progress(f"compiling {stage}", 1, 1)
            self._compiled[key] = program
        return self._compiled[key](*args)

    def placed(self, tree: Any) -> Any:
        """A tree of arrays on the mesh, whole on each device where it is not on it yet; as it is
        without a mesh."""
        mesh = self.mesh
        if mesh is None:
            return tree

        def one(leaf: Any) -> jax.Array:
            place = getattr(leaf, "sharding", None)
            here = isinstance(place, NamedSharding) and place.mesh == mesh
            return leaf if here else sharding.whole(leaf, mesh)

        return jax.tree.map(one, tree)


def usual_device() -> Any:
    """The device that arrays are made on."""
    return jax.config.values["jax_default_device"] or jax.local_devices()[0]


def signature(args: Any) -> Any:
    """What jit would tell two calls apart by: structure, shapes, types, and chosen devices."""
    leaves, structure = jax.tree.flatten(args)
    usual = SingleDeviceSharding(usual_device())
    return structure, tuple((jax.typeof(leaf), _place(leaf, usual)) for leaf in leaves)


def _place(leaf: Any, usual: Any) -> Any:
    """Where a leaf was put; None for where it would be anyway, so that an output of one call, which
    is committed there, is no news to the next."""
    chosen = leaf.sharding if getattr(leaf, "committed", False) else None
    return None if chosen == usual else chosen
