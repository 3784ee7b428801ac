"""Consistency distillation: its loss as written out, LCM's conditions as diffusers has them, and on
a Gaussian, whose exact denoiser is known, the solution map that it converges to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mv2_jax.config import ScheduleConfig
from mv2_jax.diffusion import distillation, keys, samplers
from mv2_jax.diffusion.distillation import Distillation
from mv2_jax.diffusion.process import Flow
from mv2_jax.errors import InputError

X0 = ScheduleConfig(prediction="x0")
MEAN, SPREAD = 0.7, 0.4


def exact(x, point):
    """E[x0 | x] of data from N(MEAN, SPREAD^2), guided or not: a network of this kind."""
    alpha, sigma = point.alpha[:, None], point.sigma[:, None]
    gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


@pytest.mark.parametrize("form", distillation.FORMS)
def test_the_loss_is_the_formula(form):
    how = Distillation(form, points=10, huber=0.1)
    x0 = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    each = keys.per_sample(keys.seed(1), 64)
    got, metrics = distillation.loss(
        lambda x, p: 0.5 * x + 0.1 * p.t[:, None] / 1000, exact, x0, each, X0, how
    )
    now, then, goal = distillation.drawn(each, X0, how)
    eps = np.asarray(keys.normal(keys.fold(each, "noise"), (3,)))
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    signal = np.sqrt(np.append(np.cumprod(1 - betas), 1.0))  # the last is the clean end
    grid = np.append(np.arange(10, 0, -1) * 100 - 1, 1000)
    t = np.asarray(now.t).astype(int)
    place = np.array([list(grid).index(step) for step in t])
    assert set(place) == set(range(10))
    errors = []

    def said(x, time):
        return 0.5 * x + 0.1 * time / 1000

    for row, at in enumerate(place):
        index = [
            grid[at],
            grid[at + 1],
            list(np.float32(signal)).index(np.float32(goal.alpha[row])),
        ]
        (a, b, c), (sa, sb, sc) = signal[index], np.sqrt(1 - signal[index] ** 2)
        times = [0 if i == 1000 else i for i in index]

        def jump(x, alpha, sigma, time, c=c, sc=sc):
            if form == "consistency":
                return said(x, time)
            if form == "lcm":
                spread = 10.0 * time
                out = spread / (spread**2 + 0.25) ** 0.5
                return 0.25 / (spread**2 + 0.25) * x + out * said(x, time)
            clean = said(x, time)
            return c * clean + sc * (x - alpha * clean) / sigma

        x = a * x0[row] + sa * eps[row]
        mean = MEAN + a * SPREAD**2 / (a**2 * SPREAD**2 + sa**2) * (x - a * MEAN)
        solved = b * mean + sb * (x - a * mean) / sa
        wanted = solved if sb == 0 else jump(solved, b, sb, times[1])
        errors.append(jump(x, a, sa, times[0]) - wanted)
    errors = np.array(errors)
    np.testing.assert_allclose(got, np.mean(np.sqrt(errors**2 + 0.01) - 0.1), rtol=2e-5)
    np.testing.assert_allclose(metrics["gap"], np.sqrt(np.mean(errors**2)), rtol=2e-5)
    if form == "tcd":  # goals are anywhere past the step's end
        assert (goal.alpha >= then.alpha).all() and len(np.unique(goal.alpha)) > 5


def test_lcms_boundary_is_that_of_diffusers_scheduler():
    scheduler = pytest.importorskip("diffusers").LCMScheduler()
    from mv2_jax.diffusion import solvers

    for t in (0, 19, 259, 999):
        theirs = scheduler.get_scalings_for_boundary_condition_discrete(t)
        ours = solvers.boundary(jnp.float32(t))
        np.testing.assert_allclose(ours, [float(x) for x in theirs], rtol=1e-6)
    assert solvers.boundary(jnp.float32(0)) == (1.0, 0.0)


def taught(schedule, how):
    """A table [points, 2] that makes x0 = gain * x + offset at each point, distilled."""
    grid = how.grid(schedule)
    times = jnp.asarray(grid.t)

    def student(table):
        def at(x, point):
            row = table[jnp.abs(times[None] - point.t[:, None]).argmin(-1)]
            return row[:, :1] * x + row[:, 1:]

        return at

    tx = optax.adam(optax.cosine_decay_schedule(0.05, 3000))

    def step(carry, number):
        table, state = carry
        each = keys.per_sample(keys.fold(keys.seed(0), number), 256)
        x0 = MEAN + SPREAD * keys.normal(keys.fold(each, "data"), (1,))

        def loss(table):
            return distillation.loss(student(table), exact, x0, each, schedule, how)[0]

        updates, state = tx.update(jax.grad(loss)(table), state)
        return (table + updates, state), None

    table = jnp.zeros((grid.steps, 2))
    run = jax.jit(lambda start: jax.lax.scan(step, start, jnp.arange(3000))[0][0])
    return grid, student(run((table, tx.init(table))))


@pytest.mark.parametrize(
    "schedule, form", [(X0, "lcm"), (Flow(prediction="x0"), "consistency")], ids=["lcm", "flow"]
)
def test_on_a_gaussian_it_becomes_the_solution_map(schedule, form):
    grid, student = taught(schedule, Distillation(form, points=12))
    x = np.linspace(-2, 2, 9, dtype=np.float32)[:, None]
    for at in (0, 5, 11):

        def now(of, at=at):
            return samplers.Point(*(jnp.full(9, column[at]) for column in of[:3]))

        # What the teacher's solver makes of it, step by step.
        y = x
        for n in range(at, grid.steps):
            there = samplers.Point(*(jnp.full(9, c[n]) for c in (grid.t, *grid[3:5])))
            y = distillation.moved(exact(y, now(grid, n)), y, now(grid, n), there)
        got = student(jnp.asarray(x), now(grid))
        assert np.abs(got - y).max() < 0.02, at
        # One evaluation of the teacher is far from there, at noise.
        assert at or np.abs(exact(x, now(grid)) - y).max() > 0.2


def test_refusals():
    with pytest.raises(
        InputError, match=r"distil\.form 'tcd' needs a discrete schedule; over Flow"
    ):
        Distillation("tcd").grid(Flow())
    with pytest.raises(InputError, match="part is over 0 to 1"):
        Distillation(part=0.0)
    with pytest.raises(InputError, match="lmc"):
        Distillation("lmc")
    now, *_ = distillation.drawn(keys.per_sample(keys.seed(0), 99), X0, Distillation(part=0.3))
    assert now.t.max() == 299  # fifteen of fifty points
