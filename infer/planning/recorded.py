"""Every program of a cascade, found by running the cascade on shapes alone.

`Recorder` stands for `mv2_jax.programs.Programs`: it is called as that is, notes each jitted
function with its arguments' shapes, and gives back zeros of the results' shapes. So what is planned
is what `mv2 generate` would run, whatever its flags change.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mv2_jax import sharding
from mv2_jax.diffusion import keys, samplers

if TYPE_CHECKING:
    from mv2_jax.cascade import Cascade

PROMPT = "a lighthouse in a storm, oil painting"
STEP = "step"  # what the program of a denoising step is called
_NAMES = {"advance": STEP, "condition": "encoders", "interpolate": "frames between"}

AnyMesh = Mesh | AbstractMesh


@dataclass
class Program:
    """A jitted function and what it is called with: shapes, which know where they lie on a mesh.

    `times`: how often it runs for a batch of videos. `traced` is its trace under that mesh.
    """

    stage: str
    name: str
    function: Any
    args: tuple[Any, ...]
    static: Mapping[str, Any]
    times: int = 1
    traced: Any = field(default=None, repr=False)

    @property
    def label(self) -> str:
        return f"{self.stage} {self.name}"


class Recorder:
    """Stands for `programs.Programs`; `programs` are those that were called, in order.

    A chain's program is noted for one step, since its steps are alike.
    """

    def __init__(self, mesh: AnyMesh) -> None:
        self.mesh = mesh
        self.programs: list[Program] = []
        self._known: dict[Any, Program] = {}
        self._traces: dict[Any, Any] = {}

    def __call__(self, stage: str, function: Any, *args: Any, progress: Any = None, **static: Any):
        name = getattr(function, "__name__", "program").strip("_")
        name = _NAMES.get(name, name)
        if name == STEP:
            static = {**static, "k": 1}
        split = sharding.fit(sharding.SAMPLES, _samples(args[-1]) if name == STEP else 1, self.mesh)
        specs = [P()] * len(args)
        if name == STEP:  # rows of guidance stand before the samples, elsewhere these are first
            specs[1], specs[3] = P(None, split), P(split)
        shapes = tuple(_shapes(arg, self.mesh, spec) for arg, spec in zip(args, specs))
        leaves, structure = jax.tree.flatten(shapes)
        form = function, tuple(sorted(static.items())), structure, tuple(map(str, leaves))
        if (stage, form) in self._known:
            self._known[stage, form].times += 1
        else:
            made = Program(stage, name, function, shapes, static, traced=self._traces.get(form))
            made.traced = self._traces[form] = made.traced or trace(made, self.mesh)
            self._known[stage, form] = made
            self.programs.append(made)
        return jax.tree.map(_zeros, self._traces[form].out_info)


def trace(program: Program, mesh: AnyMesh) -> Any:
    """The program's trace for the devices of a mesh, none of which has to exist."""
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.args)
    with scope(mesh):
        return program.function.trace(*args, **program.static)


@contextmanager
def scope(mesh: AnyMesh) -> Iterator[None]:
    """The context that a mesh's programs are traced in."""
    own = jax.sharding.use_abstract_mesh if isinstance(mesh, AbstractMesh) else jax.set_mesh
    with own(mesh):
        yield


def record(
    four: Cascade,
    mesh: AnyMesh,
    numbers: Mapping[str, Mapping[str, Any]],
    stages: Sequence[str],
    batch: int = 1,
    inputs: Mapping[str, Any] | None = None,
) -> list[Program]:
    """The programs that make a batch of videos, in their order, with how often each runs.

    Args:
        four: its parameters are shapes that know where they lie (`sources.Source.on`).
        numbers: of every stage, as its method takes them.
        stages: of "t2i", "i2v", "v2v", "vfi".
        inputs: raw inputs beside the usual ones, for the stages that read them.
    """
    recorder = Recorder(mesh)
    four = dataclasses.replace(four, programs=recorder)
    prompts, seeds = [PROMPT] * batch, keys.seeds([0] * batch)
    image = np.zeros((batch, *four.picture.stage.size, 3), np.float32)
    frames = np.zeros((batch, four.keyframes.stage.frames, *four.keyframes.stage.size, 3), "f4")
    refined = np.zeros((batch, four.refined.stage.frames, *four.refined.stage.size, 3), "f4")
    given = {"t2i": (), "i2v": (image,), "v2v": (image, frames)}
    for name in stages:
        begun = len(recorder.programs)
        if name == "vfi":
            between = int(numbers["vfi"]["between"])
            if between:
                four.vfi(refined, between + 1)
            continue
        deaf = four.idle(name, **numbers[name])
        heard = {key: value for key, value in numbers[name].items() if key not in deaf}
        more = _more(four, name, batch, inputs or {})
        getattr(four, name)(prompts, *given[name], keys=seeds, more=more, **heard)
        for program in recorder.programs[begun:]:
            if program.name == STEP:
                program.times = steps(four, name, numbers[name])
    return recorder.programs


def steps(four: Cascade, stage: str, numbers: Mapping[str, Any]) -> int:
    """How many denoising steps a stage makes."""
    count = int(numbers.get("steps") or four.stage(stage).stage.steps)
    if stage == "v2v":
        count -= int(samplers.start_index(count, numbers["strength"]))
    return count * (int(numbers.get("free_init", 0)) + 1)


def _more(four: Cascade, stage: str, batch: int, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Raw inputs that are given, and blank ones for conditions of one's own."""
    read, cfg = four.inputs(stage), four.stage(stage)
    made = {key: value for key, value in inputs.items() if key in read}
    for each in cfg.conditions:
        if hasattr(each, "read"):
            blank = each.blank(cfg, batch)
            made |= {key: np.asarray(blank[key]) for key in each.needs if key not in made}
    return made


def _samples(state: samplers.State) -> int:
    return state.x.shape[0]


def _shapes(arg: Any, mesh: AnyMesh, spec: P) -> Any:
    """Shapes that lie on the mesh as `spec` says, where they do not know it themselves."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        own = P(*spec[: np.ndim(leaf)])
        return jax.ShapeDtypeStruct(
            np.shape(leaf),
            jnp.result_type(leaf) if not hasattr(leaf, "dtype") else leaf.dtype,
            sharding=NamedSharding(mesh, own),
        )

    return jax.tree.map(one, arg)


def _zeros(shape: Any) -> Any:
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return keys.seeds([0] * math.prod(shape.shape)).reshape(shape.shape)
    return np.zeros(shape.shape, shape.dtype)
