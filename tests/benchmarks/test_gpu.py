"""benchmarks/gpu.py: what it counts, how it cuts, and the whole of it at tiny sizes."""

import importlib
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import MotionConfig, UNetConfig
from mv2_jax.diffusion.samplers import State
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return lambda name: importlib.import_module(f"gpu_parts.{name}")


def counted(load, function, *shapes):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return load("flops").count(jax.jit(function).trace(*args).jaxpr)


def test_products_loops_and_branches_are_counted(load):
    def product(a, b):
        return a @ b

    def loop(a, b):
        return jax.lax.scan(lambda c, _: (c @ b, None), a, length=7)[0]

    def branch(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b @ b, lambda: a @ b)

    one = 2 * 3 * 5 * 5
    shapes = (3, 5), (5, 5)
    assert counted(load, product, *shapes) == one
    assert counted(load, loop, *shapes) == 7 * one
    assert counted(load, branch, *shapes) == 2 * one
    gradients = jax.grad(lambda a, b: (a @ b).sum(), argnums=(0, 1))
    assert counted(load, gradients, *shapes) == 3 * one


def test_convolutions_are_counted_with_groups_strides_and_gradients(load):
    def convolve(stride, groups, x, kernel):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, stride, "SAME", dimension_numbers=names, feature_group_count=groups
        )

    # Of three taps along a side, those at both borders meet padding once each.
    x, met = (2, 9, 7, 8), (3 * 9 - 2) * (3 * 7 - 2)
    plain = 2 * 2 * met * 8 * 4
    assert counted(load, partial(convolve, (1, 1), 1), x, (3, 3, 8, 4)) == plain
    assert counted(load, partial(convolve, (1, 1), 4), x, (3, 3, 2, 4)) == plain / 4
    strided = 2 * 2 * (3 * 5 - 2) * (3 * 4 - 2) * 8 * 4
    assert counted(load, partial(convolve, (2, 2), 1), x, (3, 3, 8, 4)) == strided

    for stride, one in (((1, 1), plain), ((2, 2), strided)):

        def both(x, kernel, stride=stride):
            out, pull = jax.vjp(partial(convolve, stride, 1), x, kernel)
            return pull(out)

        # Each gradient has as many products as the convolution had, strided or not.
        assert counted(load, both, x, (3, 3, 8, 4)) == 3 * one


def test_a_networks_count_is_xlas_without_what_is_no_product(load):
    cfg = UNetConfig(
        channels=(64, 128), layers_per_block=1, transformers=(1, 0), heads=(4, 4),
        context_width=32, motion=MotionConfig(heads=4),
    )  # fmt: skip
    network = UNet(cfg)
    x, t, text = jnp.zeros((1, 2, 9, 9, 4)), jnp.zeros(1), jnp.zeros((1, 7, 32))
    params = jax.eval_shape(network.init, jax.random.key(0), x, t, Context(text))
    traced = jax.jit(network.apply).trace(params, x, t, Context(text))
    mine = load("flops").count(traced.jaxpr)
    theirs = traced.lower().cost_analysis()["flops"]  # norms and activations too
    assert 0.9 * theirs < mine < theirs


def test_cards_are_known_by_the_names_that_drivers_give(load):
    peak = load("flops").peak
    assert peak("NVIDIA H100 80GB HBM3") == peak("NVIDIA H200") == 989.4
    assert peak("NVIDIA H100 PCIe") == 756 and peak("NVIDIA A100-SXM4-80GB") == 311.8
    assert peak("NVIDIA L40S") == 362 and peak("NVIDIA L4") == 121
    assert peak("NVIDIA GeForce RTX 4090") == 165.2
    assert peak("cpu") is None


@partial(jax.jit, static_argnames=("steps", "k"))
def advance(matrix, state, *, steps, k):
    done = jnp.minimum(k, steps - state.index)
    return state._replace(x=state.x @ matrix, index=state.index + done)


def chain(staged, matrix):
    """As a cascade runs one: ten steps, four at a time."""
    state = State(jnp.ones((2, 2)), jnp.int32(0), None, None)
    for _ in range(3):
        state = staged("t2i", advance, matrix, state, steps=10, k=4)
    return state


def test_a_chain_is_planned_run_and_cut(load):
    jobs, ends = load("jobs"), [time.monotonic() + 60]
    staged = jobs.Staged(jobs.Compiler(1), lambda: ends[0])
    matrix = jnp.eye(2) * 2
    planned = chain(staged, matrix)
    assert (np.asarray(planned.x) == 0).all() and staged.take() == ([], 0.0)
    staged.planning = False
    assert chain(staged, matrix).x[0, 0] == 8
    calls, waited = staged.take()
    assert waited > 0  # for the compiler
    assert [call.steps for call in calls] == [4, 4, 2] and len(staged.jobs) == 1
    assert [call.flops for call in calls] == [16, 16, 8]  # idle steps do no work
    # Once its time is up, the chain stands where it was.
    state = staged("t2i", advance, matrix, planned._replace(x=jnp.ones((2, 2))), steps=10, k=4)
    ends[0] = time.monotonic() - 1
    assert staged("t2i", advance, matrix, state, steps=10, k=4) is state
    assert [call.left_out for call in staged.take()[0]] == [0, 4]
    other = jax.jit(lambda x: x + 1)
    with pytest.raises(jobs.Late, match="was not compiled in time"):
        jobs.Job("a program", 0.0, None, jobs.Future()).program(ends[0])
    assert staged._compiler.job("again", other, (matrix,)) is staged._compiler.job(
        "once more", other, (matrix,)
    )


def test_a_cut_chain_is_scaled_and_says_so(load):
    cascades, jobs = load("cascades"), load("jobs")
    arm = cascades.Arm("sd15", (25, 25, 25), 8, 2)
    planned = cascades.Planned(arm, None, {}, jobs.Staged(None, lambda: 0.0))
    bench = load("bench").Bench(None, jobs.Compiler(1), None, None, True, None, 0.0, peak=1.0)
    calls = [
        jobs.Call("i2v condition", 0.5, 1e12, 0),
        jobs.Call("i2v advance", 2.0, 5e12, 5),
        jobs.Call("i2v advance", 1.0, 5e12, 5),
        jobs.Call("i2v advance", 0.0, 0.0, 0, left_out=5),
    ]
    row = cascades._row(bench, planned, "i2v", calls, 3.6)
    assert row["how"] == "measured 10 steps, scaled to 25"
    # What ran, and fifteen steps at the pace of those after the first, which load the kernels.
    assert row["seconds"] == pytest.approx(3.6 + 15 * 0.2)
    assert row["PFLOP"] == pytest.approx((11 + 15) / 1e3)
    assert row["MFU %"] == pytest.approx(100 * 26 / 6.6)
    whole = cascades._row(bench, planned, "i2v", calls[:3], 3.6)
    assert whole["how"] == "measured whole" and whole["seconds"] == pytest.approx(3.6)
    assert whole["s besides steps"] == pytest.approx(0.6)


def test_results_lie_on_disk_at_once(load, tmp_path):
    results = load("bench").Results(tmp_path, {"device": "a card"})
    results.part("a", "a title")
    results.row("a", stage="t2i", seconds=1.2345, how=None)
    results.remark("a", "v2v: cut")
    stored = json.loads((tmp_path / "gpu.json").read_text())
    assert stored["parts"]["a"]["rows"] == [{"stage": "t2i", "seconds": 1.2345, "how": None}]
    table = (tmp_path / "gpu.md").read_text()
    assert "| t2i | 1.23 | - |" in table and "- v2v: cut" in table and "device: a card" in table


def test_weights_are_random_of_every_shape_and_shared(load):
    networks = load("networks")
    weights = networks.Weights("float32", small=True)
    sd15, paper = (networks.preset(name, True) for name in ("sd15", "paper"))
    assert [side % 2 for side in paper.V2V.size] == [0, 0] and paper.V2V.size[0] // 8 % 2 == 1
    shapes = weights.shapes(sd15)
    assert weights.shapes(paper)["spatial"] is shapes["spatial"]
    params = weights.make({"spatial": shapes["spatial"]})["spatial"]
    kernel = params["conv_in"]["kernel"]
    assert abs(float(kernel.std()) * (9 * 4) ** 0.5 - 1) < 0.2
    assert weights.make({"spatial": shapes["spatial"]})["spatial"] is params
    state = jax.ShapeDtypeStruct((3, 4), jnp.float32)  # an optimiser's, whatever the networks' type
    made = networks.Weights("bfloat16", small=True).make({"state": {"kernel": state}})
    assert made["state"]["kernel"].dtype == jnp.float32
    weights.drop("spat")
    assert weights.make({"spatial": shapes["spatial"]})["spatial"] is not params


@pytest.mark.slow
def test_programs_get_the_types_that_they_were_made_for(load, tmp_path):
    """In bfloat16, as on a card; nothing compiles, a program only looks at what it is given."""
    jobs = load("jobs")

    class Looks:
        def __init__(self, traced):
            self.wants = traced.in_avals
            self.out = traced.out_info

        def __call__(self, *args):
            got = jax.tree.map(jax.typeof, args)
            wants = jax.tree.leaves(self.wants)
            assert [(x.shape, x.dtype) for x in jax.tree.leaves(got)] == [
                (x.shape, x.dtype) for x in wants
            ]
            return jax.tree.map(jobs._zeros, self.out)

        def memory_analysis(self):
            names = ("argument", "output", "temp", "alias")
            return type("Memory", (), {f"{name}_size_in_bytes": 0 for name in names})

    class Compiler(jobs.Compiler):
        def _compile(self, traced, options):
            return Looks(traced), 0.0

    bench, networks = load("bench"), load("networks")
    weights = networks.Weights("bfloat16", small=True)
    results = bench.Results(tmp_path)
    whole = bench.Bench(
        results, Compiler(1), weights, tmp_path, True, jnp.dtype("bfloat16"), 0.0, 1.0
    )
    whole.part_ends = time.monotonic() + 600
    for name in ("training", "decoding"):
        part = load(name).PART
        results.part(part.name, part.title)
        part.run(whole, part.plan(whole))
        assert not results.parts[part.name]["remarks"], results.parts[part.name]["remarks"]


def run(*arguments, **kwargs):
    command = [sys.executable, str(FOLDER / "gpu.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **kwargs)


def test_wrong_parts_get_one_line():
    done = run("--parts", "a,x")
    assert done.returncode == 2 and "takes some of a0,a,b,c,d,e,f, not 'a,x'" in done.stderr


@pytest.mark.long  # half an hour at the most, by its own clock
def test_every_part_runs_at_tiny_sizes(tmp_path):
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", tmp_path)
    out = tmp_path / "out"
    done = run("--cpu", "--minutes", 30, "--out", out, "--cache", Path(cache) / "gpu", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((out / "gpu.json").read_text())["parts"]
    said = [remark for part in parts.values() for remark in part["remarks"]]
    assert not [text for text in said if "cut" in text or "fail" in text or "Error" in text], said
    runs = [row["run"] for row in parts["a0"]["rows"]]
    assert [text.split(":")[0] for text in runs] == ["cold", "warm"]
    assert (out / "shipped.mp4").stat().st_size and (out / "shipped.png").stat().st_size
    stages = [(row["arm"].split()[0], row["stage"]) for row in parts["a"]["rows"]]
    for preset in ("sd15", "paper"):
        assert {stage for name, stage in stages if name == preset} == {
            "t2i", "i2v", "v2v", "vfi", "video"
        }  # fmt: skip
    assert all(row.get("finite", True) for row in parts["a"]["rows"])
    steps = [row["s a step"] for row in parts["a"]["rows"] if row["stage"] == "v2v"]
    assert steps and min(steps) > 0
    assert len(parts["b"]["rows"]) >= 3  # ours, torch's two ways or one, and the ratio
    errors = [row["error"] for row in parts["c values"]["rows"]]
    assert max(errors) < 1e-6 and len(parts["c"]["rows"]) == 12
    assert len(parts["d"]["rows"]) == 2 and np.isfinite(parts["e"]["rows"][0]["loss"])
