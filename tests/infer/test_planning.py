"""What a trace is read for: FLOPs by hand, exchanges as derived and compiled, memory as XLA's."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.extend import core
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mv2_jax import sharding
from mv2_jax.errors import InputError
from mv2_jax.infer import machines
from mv2_jax.infer.planning import choose, compiled, estimate, summed, units, work
from mv2_jax.infer.planning.recorded import Program, scope, trace
from mv2_jax.models import traffic
from mv2_jax.models.backbone import denoise
from mv2_jax.models.unet import UNet
from mv2_jax.nn import attention
from mv2_jax.nn.transformer import Context

V5E, L4 = machines.TPUS["v5e"], machines.GPUS["l4"]


def of(function, *shapes, chip=V5E, dtype=jnp.bfloat16):
    args = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return work.of(jax.jit(function).trace(*args).jaxpr, chip)


def conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_a_product_is_counted_by_hand():
    done = of(jnp.matmul, (300, 40), (40, 200))
    assert done.useful == 2 * 300 * 40 * 200
    # What is summed over and one side to the matrix unit's 128, the other to 8: the better way.
    assert done.padded == 2 * 128 * min(304 * 256, 384 * 200)
    assert done.moved == 2 * (300 * 128 + 40 * 256 + 300 * 256)  # lanes are padded too
    assert of(jnp.matmul, (300, 40), (40, 200), chip=L4).moved == 2 * (12_000 + 8_000 + 60_000)
    slow = max(done.padded / 197e12, done.moved / 819e9)
    assert done.seconds == pytest.approx(slow) and done.exchanging == 0


def test_a_convolution_is_counted_by_hand():
    done = of(conv, (2, 10, 9, 32), (3, 3, 32, 48))
    assert done.useful == 2 * (2 * 8 * 7) * 9 * 32 * 48
    assert done.padded == pytest.approx(done.useful * (384 / 288) * (128 / 48))


def test_loops_count_as_often_as_they_run_and_branches_once():
    def looped(x, y):
        x = jax.lax.scan(lambda c, _: (c @ y, None), x, None, length=5)[0]
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ y, lambda x: x, x)

    assert of(looped, (16, 16), (16, 16)).useful == 6 * 2 * 16**3


def test_elementwise_work_is_fused_and_what_is_read_twice_is_written():
    def chain(x, w):
        return jax.nn.silu(x * 2 + 1) @ w

    def twice(x, w):
        y = jax.nn.silu(x)
        return (y @ w) + y

    size, weights = 2 * 256 * 256, 2 * 256 * 256
    assert of(chain, (256, 256), (256, 256)).moved == size + weights + size
    assert of(chain, (256, 256), (256, 256)).temporaries == 0  # its result is the output
    assert of(twice, (256, 256), (256, 256)).moved == 2 * size + (size + weights + size)
    assert of(twice, (256, 256), (256, 256)).temporaries == size  # the sum takes its place


def test_results_take_no_memory_from_what_is_live_before_they_are_made():
    def update(x, w, state):  # as an optimiser's: a state much larger than what led to it
        step = (jnp.tanh(x @ w) @ w).sum()
        return state + step

    assert of(update, (256, 256), (256, 256), (4096, 256)).temporaries >= 2 * 2 * 256 * 256


def test_the_tpu_kernels_attention_carries_its_cost():
    shape = (2, 1000, 3, 40)
    done = of(lambda q, k, v: attention._RUN["pallas"](q, k, v, None, False, "tpu"), *[shape] * 3)
    exact = 4 * 2 * 3 * 1000 * 1000 * 40
    assert exact < done.useful < 1.1 * exact  # 1,000 tokens go in blocks of 512
    assert done.padded == pytest.approx(done.useful * 128 / 40)


def test_cudnns_attention_is_planned_without_cudnn():
    mesh = estimate.abstract(machines.machine("h100"), {})
    q = jax.ShapeDtypeStruct((2, 4096, 8, 64), jnp.bfloat16)

    def loss(q, k, v):
        return attention.attend(q, k, v).astype(jnp.float32).sum()

    with scope(mesh):
        forwards = jax.jit(loss).trace(q, q, q).jaxpr
        both = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, q, q).jaxpr
    exact = 4 * 2 * 8 * 4096 * 4096 * 64
    assert work.of(forwards, L4).useful == exact and work.of(both, L4).useful == 3 * exact


def network(sizes, lead, plane=(5, 7), devices=None, dtype=jnp.float32, **wider):
    """(Program, tree, cfg, mesh) of a small UNet over emulated devices."""
    motion = dataclasses.replace(tiny.MOTION, max_frames=8) if lead[2] > 1 else None
    cfg = dataclasses.replace(tiny.SPATIAL, motion=motion, image_tokens=False, **wider)
    net, mesh = UNet(cfg), sharding.make_mesh(*sizes, devices=devices)
    x = jnp.zeros((1, lead[2], *plane, 4))
    text = jnp.zeros((1, 6, 8))
    tree = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1), Context(text))["params"]

    def one(tree, x, t, text):
        rows, samples = x.shape[:2]
        x, t, text = (leaf.reshape(-1, *leaf.shape[2:]) for leaf in (x, t, text))
        out = net.apply({"params": tree}, x, t, Context(text))
        return out.reshape(rows, samples, *out.shape[1:])

    def step(tree, x, t, text):
        return denoise(one, tree, x, t, text)

    where = sharding.shardings(tree, mesh)
    split = P(None, sharding.fit(sharding.SAMPLES, lead[1], mesh))

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, split))

    tree = jax.tree.map(
        lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=to), tree, where
    )
    args = (tree, shape(*lead, *plane, 4), shape(*lead[:2]), shape(*lead[:2], 6, 8))
    program = Program("i2v", "step", jax.jit(step), args, {})
    program.traced = trace(program, mesh)
    return program, tree, cfg, mesh


@pytest.mark.parametrize(
    "sizes, lead", [((1, 2, 4, 1), (3, 2, 5)), ((1, 2, 2, 2), (1, 2, 8)), ((1, 8, 1, 1), (3, 3, 1))]
)
def test_exchanges_of_a_trace_are_those_that_sizes_and_mesh_derive(sizes, lead):
    program, tree, cfg, mesh = network(sizes, lead)
    done = work.of(program.traced.jaxpr, V5E)
    derived = traffic.of_unet(cfg, tree, program.args[1].shape, mesh)
    assert dict(done.sent) == derived
    assert done.exchanging > 0


def test_a_compiled_network_is_read_as_its_trace_was():
    program, _, _, mesh = network((1, 2, 4, 1), (2, 2, 4))
    done = work.of(program.traced.jaxpr, V5E)
    made = compiled.compile(program, mesh, V5E)
    (row,) = estimate.rows([program], [0.0], L4, {"i2v": {"unet": program.args[0]}}, "stage")
    assert made.arguments == pytest.approx(row.parameters + row.inputs, abs=64)
    assert {*made.sent} == {*done.sent} and made.seconds is None
    for kind, size in made.sent.items():
        assert 0.9 * done.sent[kind] <= size <= 1.01 * done.sent[kind]
    # XLA:CPU fuses less than is supposed here, and copies.
    least = work.of(program.traced.jaxpr, L4).temporaries
    assert 0.25 * made.temporaries < least < made.temporaries


TEXT = """
%body (p: f32[8]) -> f32[8] {
  %f.1 = f32[8] fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"1000"}
  ROOT %g = f32[8] all-gather(%f.1), replica_groups={{0,1}}, dimensions={0}
}

%fused (q: f32[8]) -> f32[8] {
  ROOT %m = f32[8] multiply(%q, %q), backend_config={"estimated_cycles":"77777"}
}

%cond (p: f32[8]) -> pred[] {
  %limit = s32[] constant(7)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %w = f32[8] while(%a), condition=%cond, body=%body
  %no = f32[8] fusion(%w), backend_config={"estimated_cycles":"9223372036854775807"}
  ROOT %out = f32[8] fusion(%no), backend_config={"estimated_cycles":"500"}
}
"""


def test_cycles_are_added_up_loops_as_often_as_they_run_and_what_has_none_is_told():
    seconds, guessed = compiled.time(TEXT, V5E)
    assert guessed == pytest.approx(7 * 32 / 200e9)
    assert seconds == pytest.approx((7 * 1000 + 500) / 1.5e9 + guessed)
    assert compiled.sent(TEXT) == {"all-gather": 7 * 32}
    assert compiled.time(TEXT, machines.TPUS["tpu7x"]) == (None, 0.0)  # no clock is published


def test_an_out_of_memory_message_is_cut_to_what_it_says():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20G of\n 15.75G hbm. "
        "Exceeded hbm capacity by 5G. Total hbm usage >= 20G: reserved 1M program 20G"
    )
    told = compiled.refusal(message)
    assert told.startswith("Ran out of memory") and told.endswith("Exceeded hbm capacity by 5G.")


def test_a_compiler_that_fails_is_one_line():
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError("FAILED_PRECONDITION: cuDNN\nnot found")

    with pytest.raises(InputError, match=r"cuDNN not found\); --quick plans without"):
        compiled.read(Lowered(), machines.GPUS["h100"])


def test_sensible_meshes_multiply_to_the_devices():
    found = list(choose.sensible(8, batch=2, frames=32))
    assert {"data": 2, "context": 4} in found and {"data": 2, "fsdp": 4} in found
    for sizes in found:
        assert jnp.prod(jnp.array([*sizes.values()])) == 8
    assert list(choose.sensible(1, 1, 32)) == [{}]


@pytest.mark.parametrize(
    "name, devices, chips",
    [("v5e:2x4", 8, 8), ("v4:2x2x1", 8, 4), ("tpu7x:2x2x1", 8, 4), ("h200:2", 2, 2)],
)
def test_machines_have_devices(name, devices, chips):
    machine = machines.machine(name)
    assert (machine.count, machine.chips) == (devices, chips)
    assert machine.chip.source and machine.chip.tflops > 100


@pytest.mark.skipif(machines.lacking("v5e:2x2") is not None, reason="libtpu is not installed")
def test_a_tpus_compiler_tells_memory_exchanges_and_cycles():
    mesh = sharding.make_mesh(context=4, devices=machines.devices("v5e:2x2"))
    where = NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((2, 64, 64, 320), jnp.bfloat16, sharding=where)
    kernel = jax.ShapeDtypeStruct((3, 3, 320, 320), jnp.bfloat16, sharding=where)
    program = Program("i2v", "conv", jax.jit(conv), (x, kernel), {})
    program.traced = trace(program, mesh)
    made = compiled.compile(program, mesh, V5E)
    done = work.of(program.traced.jaxpr, V5E)
    args = sum(estimate.on_device(leaf, V5E) for leaf in program.args)
    assert made.arguments == args == 2 * 384 * (2 * 64 * 64 + 9 * 320) and made.guessed == 0
    assert 1.0 < made.seconds / done.seconds < 5.0  # it copies both into other layouts first


def run_by_units(jaxpr, values):
    """A jaxpr's results, one unit after the other: each sees what it declares, and no more."""
    known = dict(zip(jaxpr.invars, values))
    for low, high in units._Cut(V5E, 60)._runs(
        jaxpr.eqns,
        [[w for w in str(e.source_info.name_stack).split("/") if w] for e in jaxpr.eqns],
        [units._count(e) for e in jaxpr.eqns], 0, len(jaxpr.eqns), 0,
    ):  # fmt: skip
        piece = units._piece(jaxpr, low, high)
        out = core.jaxpr_as_fun(core.ClosedJaxpr(piece, ()))(*[known[v] for v in piece.invars])
        known.update(zip(piece.outvars, out))
    return [known[v] for v in jaxpr.outvars]


def test_units_one_after_the_other_are_the_program():
    def program(x, ws):
        kept = []
        for number, w in enumerate(ws):
            with jax.named_scope(f"block_{number}"):
                for _ in range(20):
                    x = jnp.tanh(x @ w) + jnp.sin(x)
            kept.append(x)
            x = x + 1
        return x + kept[0] * kept[2], kept[1]

    args = jax.random.normal(jax.random.key(0), (4, 4)), [jnp.eye(4) / (i + 1) for i in range(4)]
    jaxpr = jax.make_jaxpr(program)(*args).jaxpr
    told, out = program(*args), run_by_units(jaxpr, jax.tree.leaves(args))
    assert all(jnp.array_equal(a, b) for a, b in zip(told, out, strict=True))


def test_units_add_up_to_the_program():
    program, *_ = network((1, 2, 4, 1), (2, 2, 4))
    jaxpr = program.traced.jaxpr
    whole, cut = work.of(jaxpr, V5E), units.cut(jaxpr, V5E, most=120)
    total = work.Work()
    for unit in cut:
        total.add(unit.work(V5E), unit.times)
    assert total.useful == whole.useful and total.padded == whole.padded
    assert total.sent == whole.sent and total.exchanging == pytest.approx(whole.exchanging)
    assert total.seconds == pytest.approx(whole.seconds, rel=0.15)
    assert len({unit.key() for unit in cut}) < len(cut)
    assert max(unit.around for unit in cut) <= 2 * whole.temporaries


def test_a_loops_units_run_as_often_as_the_loop():
    def loop(x, y):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ y) @ y, None), x, None, length=5)[0]

    x = jnp.ones((16, 16))
    cut = units.cut(jax.jit(loop).trace(x, x).jaxpr, V5E, most=2)
    assert sum(unit.times * unit.work(V5E).useful for unit in cut) == 10 * 2 * 16**3
    assert {5} == {unit.times for unit in cut if unit.work(V5E).useful}


def test_kinds_are_compiled_once_kept_and_cut_short_by_the_clock(tmp_path, monkeypatch):
    program, _, _, mesh = network((1, 2, 4, 1), (2, 2, 4))
    machine, calls = machines.machine("l4:8"), []
    cut = units.cut(program.traced.jaxpr, V5E)
    monkeypatch.setattr(units.Unit, "lowered", lambda self, mesh: self)

    def read(unit, chip):
        calls.append(unit.key())
        done = unit.work(chip)
        return compiled.Compiled(0, 7, 0, 1, 2 * done.seconds, 0.0, done.sent)

    monkeypatch.setattr(compiled, "read", read)
    store = summed.Store(machine, mesh, tmp_path)

    def plan(limit=0.0):
        return summed.compile(cut, mesh, machine, store, limit, lambda line: None)

    kinds = plan()
    assert 0 < len(calls) == len({*calls}) < len(cut)
    told = summed.whole(kinds, 1000, 10)
    assert told.seconds == pytest.approx(
        sum((1 + (kind.made is not None)) * kind.roofline for kind in kinds)
    )
    assert told.share > 0.9 and told.arguments == 1000 and told.outputs == 10
    assert told.temporaries == max(kind.memory for kind in kinds) > 7
    done = len(calls)
    assert plan() == kinds and len(calls) == done  # from the disk
    for path in tmp_path.iterdir():
        path.write_text("{")
    assert plan() == kinds and len(calls) == 2 * done  # damaged files are made anew
    other = summed.Store(machines.machine("h100:8"), mesh, tmp_path)
    late = summed.compile(cut, mesh, machine, other, 1e-9, lambda line: None)
    assert len(calls) <= 2 * done + 1 and summed.share(late) < 1  # another machine, no time
    assert summed.whole(late, 0, 0).guessed > 0 or not any(kind.made for kind in late)


@pytest.mark.long
@pytest.mark.skipif(machines.lacking("v5e:2x2") is not None, reason="libtpu is not installed")
def test_a_network_cut_into_units_takes_what_it_takes_whole(tmp_path):
    """A UNet of one level at SD1.5's width, 8 frames of 32x32 over four chips."""
    machine = machines.machine("v5e:2x2")
    program, *_, mesh = network(
        (1, 1, 4, 1), (2, 1, 8), (32, 32), machines.devices("v5e:2x2"), jnp.bfloat16,
        channels=(320,), heads=(8,), context_width=768, norm_groups=32,
    )  # fmt: skip
    whole = compiled.compile(program, mesh, V5E)
    store = summed.Store(machine, mesh, tmp_path)
    cut = units.cut(program.traced.jaxpr, V5E)
    made = summed.whole(summed.compile(cut, mesh, machine, store, 0, print), 0, 0)
    print(f"whole {whole}\ncut {made}")
    assert made.share > 0.99 and made.sent == whole.sent
    assert made.seconds == pytest.approx(whole.seconds, rel=0.1)  # 0.956 of it
    assert 1 < made.temporaries / whole.temporaries < 1.6  # 1.33
