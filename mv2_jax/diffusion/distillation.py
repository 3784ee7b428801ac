"""Consistency distillation: a network that jumps to where its teacher's solver would arrive.

A sample is noised to a point of the solver's grid; the teacher, guided as its stage is, makes one
step of DDIM from there. From both ends of that step the student jumps to one place, and its jump
from the noisier end is to be the one from the other. So guidance and steps are learnt at once: the
student runs one row.

- "lcm": the place is the clean end, with the boundary condition of latent consistency models
  (arXiv 2310.04378, section 4.1), as diffusers' LCM scheduler and training scripts have it;
- "consistency": the clean end, and the jump is to x0 as the network has it; over any process;
- "tcd": the place is drawn between the step's end and the clean end, and jumps are DDIM's
  (trajectory consistency, arXiv 2402.19159, first order). The network is not told the place, so
  that what it learns lies between its teacher's x0 and the end of the trajectory.

Each form is the name of the sampler that its student is for.

The target is the student itself without a gradient, not an average of it (arXiv 2310.14189, section
3.2; LCM's own training scripts do likewise). Distances are pseudo-Huber's, by element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.config import ScheduleConfig
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import prediction, process, schedules, solvers
from mv2_jax.diffusion.points import Grid, Point
from mv2_jax.errors import InputError
from mv2_jax.lookup import one_of

FORMS = ("lcm", "tcd", "consistency")
Model = Callable[[jax.Array, Point], jax.Array]


@dataclass(frozen=True)
class Distillation:
    """How a student is taught.

    form: one of `FORMS`. points: steps of the teacher's solver over the whole chain.
    part: which of it is taught, from the clean end: of V2V no more than its strength is run.
    huber: where the distance goes over from squares to magnitudes.

    Raises:
        InputError: an unknown form, or numbers out of range.
    """

    form: str = "lcm"
    points: int = 50
    part: float = 1.0
    huber: float = 1e-3

    def __post_init__(self) -> None:
        one_of(self.form, FORMS, "distil.form")
        if self.points < 1 or not 0 < self.part <= 1 or self.huber <= 0:
            raise InputError("distil: points are 1 or more, part is over 0 to 1, huber over 0")

    def grid(self, schedule: Any) -> Grid:
        """The solver's steps; over a discrete schedule those that LCM and TCD choose theirs from.

        Raises:
            InputError: LCM's form or TCD's over another process.
        """
        if isinstance(schedule, ScheduleConfig):
            return schedules.consistency_grid(schedule, self.points, self.points)
        if self.form != "consistency":
            name = type(schedule).__name__
            raise InputError(
                f"distil.form {self.form!r} needs a discrete schedule; over {name} take "
                "'consistency'"
            )
        return process.grid(schedule, self.points)


def loss(
    student: Model,
    teacher: Model,
    x0: jax.Array,
    keys: jax.Array,
    schedule: Any,
    cfg: Distillation = Distillation(),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of one batch.

    Args:
        student: `f(x, point)`: noisy samples like x0 and a Point of numbers [B] in, an output of
            the process's prediction out.
        teacher: the same, guided; it gets no gradient.
        x0: clean samples [B, ..., C]. keys: typed keys [B].
        schedule: the process, or what stands for one.

    Returns:
        (loss [], metrics): `gap` is the root mean square distance of the two jumps.
    """
    kind = process.of(schedule).prediction
    now, then, goal = drawn(keys, schedule, cfg)
    x0 = x0.astype(jnp.float32)
    eps = named.normal(named.fold(keys, "noise"), x0.shape[1:])
    x = prediction.noised(x0, eps, now.alpha, now.sigma)

    def clean(model: Model, x: jax.Array, point: Point) -> jax.Array:
        output = model(x, point).astype(jnp.float32)
        return prediction.to_x0(kind, output, x, point.alpha, point.sigma)

    solved = jax.lax.stop_gradient(moved(clean(teacher, x, now), x, now, then))
    wanted = jax.lax.stop_gradient(jump(clean(student, solved, then), solved, then, goal, cfg.form))
    # At the clean end nothing is left to jump over.
    arrived = prediction.expand(then.sigma == 0, x.ndim)
    wanted = jnp.where(arrived, solved, wanted)
    error = jump(clean(student, x, now), x, now, goal, cfg.form) - wanted
    distance = jnp.sqrt(error**2 + cfg.huber**2) - cfg.huber
    return distance.mean(), {"gap": jnp.sqrt((error**2).mean())}


def drawn(keys: jax.Array, schedule: Any, cfg: Distillation) -> tuple[Point, Point, Point]:
    """Where each sample's step of the solver starts and ends, and where jumps go: numbers [B]."""
    grid = cfg.grid(schedule)
    first = grid.steps - max(1, round(grid.steps * cfg.part))
    ends = [np.append(column, end) for column, end in zip(grid[:3], (0.0, 1.0, 0.0))]
    t, alpha, sigma = (jnp.asarray(column, jnp.float32) for column in ends)

    def between(purpose: str, low: Any, high: int) -> jax.Array:
        """A whole number from low up to, not with, high."""
        u = named.uniform(named.fold(keys, purpose))
        return jnp.minimum(low + jnp.floor(u * (high - low)).astype(jnp.int32), high - 1)

    at = between("step", first, grid.steps)
    to = between("goal", at + 1, grid.steps + 1) if cfg.form == "tcd" else jnp.full_like(at, -1)
    now, then, goal = (Point(t[i], alpha[i], sigma[i]) for i in (at, at + 1, to))
    return now, then, goal


def moved(x0: jax.Array, x: jax.Array, now: Point, then: Point) -> jax.Array:
    """DDIM's step from x at `now` to `then`."""
    eps = prediction.eps_of(x, x0, now.alpha, now.sigma)
    return prediction.noised(x0, eps, then.alpha, then.sigma)


def jump(x0: jax.Array, x: jax.Array, now: Point, goal: Point, form: str) -> jax.Array:
    """Where the student's x0 at x takes it."""
    if form == "tcd":
        return moved(x0, x, now, goal)
    if form == "consistency":
        return x0
    skip, out = solvers.boundary(now.t)
    return prediction.noised(x, x0, skip, out)
