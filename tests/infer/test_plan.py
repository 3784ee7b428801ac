"""Planning: what is refused before anything is loaded, and a plan for eight fake devices."""

import dataclasses
import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from mv2_jax import cli, config
from mv2_jax.infer import ahead, machines, plan
from mv2_jax.stages import stage as stages

UNET = config.UNetConfig(
    channels=(16, 16),
    layers_per_block=1,
    transformers=(1, 0),
    heads=(2, 2),
    context_width=12,
    norm_groups=4,
    motion=config.MotionConfig(max_frames=4, heads=2, norm_groups=4),
    image_tokens=True,
)
BODY = dataclasses.replace(UNET, motion=None, image_tokens=False)
NETWORKS = {
    "text_encoder": config.TextConfig(
        vocab_size=9, max_length=5, width=12, layers=1, heads=2, mlp_width=8
    ),
    "image_encoder": config.VisionConfig(
        image_size=28, width=8, layers=1, heads=2, mlp_width=8, projection=8
    ),
    "image_attn": config.ImageProjectionConfig(
        in_width=8, width=8, out_width=12, tokens=2, depth=1, heads=1, head_width=8
    ),
    "control": config.ControlNetConfig(BODY, condition_channels=(4, 4, 4, 4)),
}
STAGE = config.StageConfig(UNET, config.ScheduleConfig(), (48, 32), frames=4, steps=10)
TINY = stages.build("i2v", STAGE, NETWORKS, factor=8)


@pytest.fixture
def fake(monkeypatch):
    """Machines are the CPU's fake devices, and the stage a tiny one."""
    monkeypatch.setattr(machines, "check", lambda name: None)
    monkeypatch.setattr(machines, "devices", lambda name: jax.devices())
    monkeypatch.setattr(ahead, "stage_config", lambda stage, weights: TINY)


def refusal(capsys, *arguments):
    assert cli.main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["i2v", "--on", "v5f:2x4"], "did you mean 'v5"),
        (["i2v", "--on", "h100:many"], "as in h100:8"),
        (["i2x", "--on", "h100"], "invalid choice: 'i2x'"),
        (["i2v"], "required: --on"),
        (["i2v", "--on", "h100", "--batch", "0"], "takes a whole number of 1 or more, not"),
    ],
)
def test_bad_arguments_are_one_line(capsys, arguments, says):
    assert says in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--size", "60x40"], "multiples of 8"),
        (["--frames", "5"], "from 1 to 4 frames"),
        (["--mesh", "contex=8"], "did you mean 'context'"),
        (["--mesh", "data=2,tensor=2"], "needs 4 devices; there are 8"),
    ],
)
def test_what_the_stage_or_machine_cannot_do_is_one_line(fake, capsys, arguments, says):
    assert says in refusal(capsys, "i2v", "--on", "v5e:2x4", *arguments)


@pytest.mark.parametrize("name, extra", [("v5e:2x4", "tpu"), ("h100:8", "cuda")])
def test_a_missing_compiler_names_the_extra(monkeypatch, capsys, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert f"pip install 'mv2-jax[{extra}]'" in refusal(capsys, "i2v", "--on", name)


def test_help_loads_no_jax():
    code = (
        "import sys\nfrom mv2_jax import cli\n"
        "try: cli.main(['plan', '--help'])\nexcept SystemExit: pass\n"
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: mv2 plan") and done.stdout.endswith("False\n")


def test_the_paper_sizes():
    assert ahead.full_size("t2i").latent_shape == (1, 128, 128, 4)
    assert ahead.full_size("i2v").latent_shape == (32, 75, 75, 4)
    assert ahead.full_size("v2v").latent_shape == (32, 131, 131, 4)


def test_the_network_is_the_stages_own_without_its_encoders():
    function, (parameters, *inputs) = ahead.denoiser(TINY, batch=1)
    assert set(parameters) == {"spatial", "motion", "control", "image_attn"}
    assert set(parameters["image_attn"]) == {"unet"}
    assert jax.eval_shape(function, parameters, *inputs).shape == (3, 1, 4, 6, 4, 4)


def test_a_sparse_control_is_planned_with_the_references_latent():
    body = dataclasses.replace(UNET, image_tokens=False)
    networks = {**NETWORKS, "control": config.SparseControlConfig(body)}
    cfg = stages.build("i2v", STAGE, networks, factor=8)
    function, (parameters, *inputs) = ahead.denoiser(cfg, batch=1)
    assert inputs[-1]["control"]["shown"].shape == (3, 1, 6, 4, 4)
    assert jax.eval_shape(function, parameters, *inputs).shape == (3, 1, 4, 6, 4, 4)


@pytest.mark.slow
def test_a_plan_for_eight_devices_splits_parameters_and_frames(fake, monkeypatch, capsys):
    made = []
    compile_stage = ahead.compile_stage

    def kept(*arguments):
        made.append((arguments, compile_stage(*arguments)))
        return made[0][1]

    monkeypatch.setattr(ahead, "compile_stage", kept)
    arguments = ["i2v", "--on", "any", "--dtype", "float32"]
    assert cli.main(["plan", *arguments]) == 0
    ((cfg, mesh, batch), answer) = made[0]
    assert (cfg.name, batch, cfg.dtype) == ("i2v", 1, jnp.float32)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "context": 4, "tensor": 1}
    _, (parameters, *_) = ahead.denoiser(cfg, batch)
    whole = 4 * sum(leaf.size for leaf in jax.tree.leaves(parameters))
    assert 0.5 * whole < answer.arguments < 0.75 * whole  # over fsdp 2, and the inputs
    assert answer.temporaries > 0 and answer.outputs > 0 and answer.refused is None
    out = capsys.readouterr().out
    assert "4 frames of 32x48, 3 rows" in out and "mesh: fsdp 2, context 4" in out
    assert "memory of each device: " in out


def test_what_is_said_of_a_plan():
    lines = plan.describe(ahead.Plan(2**30, 2**29, 2**29, seconds=0.5), steps=25)
    assert lines == [
        "memory of each device: 2.00 GiB (parameters and inputs 1.00 GiB, temporaries 0.50 GiB)",
        "time, as the compiler estimates it: 0.5 s a step, 12.5 s for 25 steps",
    ]
    assert "no estimate" in plan.describe(ahead.Plan(1, 1, 1), steps=1)[1]
    assert plan.describe(ahead.Plan(refused="Used 20G of\n 15G hbm"), 1) == [
        "it does not fit: Used 20G of 15G hbm"
    ]
