"""What a run tells of itself: its pace, TensorBoard, a profile, and what made its weights."""

import io
import json
import re
import sys
import time
import types

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import cli
from mv2_jax.errors import InputError
from mv2_jax.infer.machines import KNOWN
from mv2_jax.train import boards, loop, meter, profile, record, report

from .regression import batches, config, task

TOLD = []


class Own:
    def __init__(self, folder, cfg, step):
        TOLD.append(("begun", step))

    def log(self, step, values):
        TOLD.append((step, dict(values)))

    def sheet(self, step, image):
        TOLD.append(("sheet", step, image.shape))

    def close(self):
        TOLD.append(("closed",))


CLIP = np.stack([np.full((5, 7, 3), level, np.uint8) for level in (0, 128, 255)])


def moving(params, frozen, key):
    """A sheet of samples that move: three frames, black to white."""
    return report.Moving(np.zeros((4, 6, 3), np.uint8), CLIP, 8.0)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A run whose data take a twentieth of a second each, with every board and a profile."""

    def slow(seed, start):
        for batch in batches(seed, start):
            time.sleep(0.05)
            yield batch

    folder = tmp_path_factory.mktemp("seen")
    sys.modules["own_board"] = module = types.ModuleType("own_board")
    module.make = Own
    cfg = config(steps=20, log_every=10, profile="3:4", reports=("tensorboard", "own_board:make"))
    loop.run(task(batches=slow, sample=moving), cfg, folder)
    return folder, [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def test_the_pace_is_that_of_the_steps_alone(seen):
    row = seen[1][-1]
    assert 0.04 < row["step_s"] < 0.5  # compiling took longer
    assert row["steps_per_s"] == pytest.approx(1 / row["step_s"])
    assert row["samples_per_s"] == pytest.approx(8 / row["step_s"])
    assert 0.5 < row["input_wait"] <= 1
    assert 0.1 < row["memory_gib"] < 16
    assert "mfu" not in row  # nobody says what this CPU could do
    count = jax.jit(lambda x, k: x @ k).lower(jnp.ones((8, 4)), jnp.ones((4, 1)))
    assert row["tflops"] * row["step_s"] > count.cost_analysis()["flops"] / 1e12


def test_the_share_of_the_makers_peak(monkeypatch):
    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

    monkeypatch.setattr(meter.jax, "devices", lambda: [Device()])
    monkeypatch.setattr(meter, "memory", lambda: 1.0)
    for half, devices in ((True, 1), (True, 4), (False, 1)):
        one = meter.Meter(devices, half)
        one.step(2, 1e12)
        told = one.take()
        assert told.get("mfu") == (
            pytest.approx(told["tflops"] / (KNOWN["h100"].tflops * devices)) if half else None
        )


def test_boards_get_numbers_and_sheets(seen):
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (seen[0] / "tensorboard").iterdir()
    data, values, images = path.read_bytes(), {}, []
    while data:  # a length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        for value in event.summary.value:
            if value.HasField("simple_value"):
                values[event.step, value.tag] = value.simple_value
            elif value.HasField("image"):
                images.append((event.step, value.tag, value.image.height, value.image.width))
                encoded = value.image.encoded_image_string
    for row in seen[1]:
        assert values[row["step"], "loss"] == pytest.approx(row["loss"], rel=1e-6)
        assert values[row["step"], "step_s"] == pytest.approx(row["step_s"], rel=1e-6)
    assert images == [(20, "samples", 4, 6), (20, "clips", 5, 7)]
    assert encoded == (seen[0] / "samples/step_0000020.gif").read_bytes()
    with av.open(io.BytesIO(encoded)) as film:  # ffmpeg's reading
        frames = list(film.decode(video=0))
    assert [frame.time for frame in frames] == pytest.approx([0, 0.12, 0.24], abs=0.011)
    shown = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    np.testing.assert_array_equal(shown, CLIP)
    assert TOLD[0] == ("begun", 0) and TOLD[-1] == ("closed",)
    assert ("sheet", 20, (4, 6, 3)) in TOLD and TOLD[1][0] == 1


def test_wandb_is_told_the_same(tmp_path, monkeypatch):
    """Without the package: a module of its name that writes down what it is asked."""
    asked = []

    class Run:
        def log(self, values, step):
            asked.append((step, values))

        def finish(self):
            asked.append("finished")

    fake = types.ModuleType("wandb")
    fake.init = lambda **given: asked.append(given) or Run()
    fake.Image = lambda image: ("image", image.shape)
    fake.Video = lambda file, format: (format, file.read())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (0, 5):  # begun, and resumed
        board = boards.WandB(tmp_path, config(), step)
        board.log(step + 1, {"loss": 1.5, "odd": float("nan")})
        board.sheet(step + 1, np.zeros((4, 6, 3), np.uint8))
        board.clips(step + 1, b"GIF")
        board.close()
    first, again = (given["id"] for given in asked if isinstance(given, dict))
    assert first == again and re.fullmatch("[a-z0-9]{8}", first)
    assert asked[0]["name"] == "test-regression" and asked[0]["config"]["batch"] == 8
    shown = [(1, {"samples": ("image", (4, 6, 3))}), (1, {"clips": ("gif", b"GIF")})]
    assert asked[1:5] == [(1, {"loss": 1.5}), *shown, "finished"]


def test_wandb_itself_takes_it(tmp_path, monkeypatch):
    """Offline, begun and resumed: two runs of one id lie on the disk."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (0, 5):
        board = boards.WandB(tmp_path, config(), step)
        board.log(step + 1, {"loss": 1.5})
        board.sheet(step + 1, np.zeros((4, 6, 3), np.uint8))
        board.clips(step + 1, report.gif(CLIP, 8.0))
        board.close()
    (kept,) = {run.name.split("-")[-1] for run in (tmp_path / "wandb").glob("offline-run-*")}
    assert kept == (tmp_path / "wandb-id.txt").read_text()


def test_steps_are_profiled(seen):
    assert list((seen[0] / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", ["20", "5:4", "0:3", "a:b", "3:"])
def test_steps_to_profile_are_checked(steps):
    with pytest.raises(InputError, match="it takes two steps, as in 20:25"):
        profile.parse(steps)


@pytest.mark.parametrize(
    "more, says",
    [
        (["--profile", "9"], "it takes two steps"),
        (["--set", "reports=('tensorbored',)"], "tensorboard"),
        (["--wandb"], "wandb needs wandb: pip install wandb"),
    ],
)
def test_the_command_checks_them_before_it_trains(more, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "run", None)
    monkeypatch.setattr(boards.needs, "there", lambda name: name != "wandb")
    assert cli.main(["train", "toybox/vae", "--out", str(tmp_path), *more]) == 2
    assert says in capsys.readouterr().err


def test_a_record_says_what_made_the_weights(monkeypatch):
    cfg = config(data={"source": "toybox", "count": 8, "side": 32, "motions": ()})
    made = record.of(cfg)
    assert made["config"]["batch"] == 8 and made["versions"]["jax"] == jax.__version__
    assert made["devices"]["count"] == jax.device_count() and len(made["code"]) == 64
    assert made["data"]["facts"] and record.of(cfg) == json.loads(json.dumps(made))
    cfg.seed = 1
    assert record.data(cfg)["fingerprint"] != made["data"]["fingerprint"]
    assert record.data(config()) is None


RECIPE = """
from train.regression import config, task
from mv2_jax.train.phase import recipe

def make(cfg, begin, folder):
    return task()

def get_config():
    one = config(steps=3600)
    one.task = "dry_recipe:make"
    return recipe(one=one, two=one.copy_and_resolve_references())
"""


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "dry_recipe.py").write_text(RECIPE)
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "runs"
    asked = ["train", str(tmp_path / "dry_recipe.py"), "--out", str(out), "--dry-run"]
    assert cli.main(asked) == 0
    said = capsys.readouterr().out
    assert "trained    0.00M parameters: layer 0.00M" in said
    assert "batch      8 samples" in said and "steps      3600, 28800 samples" in said
    pace, hours = (
        float(re.search(rf"{what}", said)[1]) for what in (r"at (\S+) s a", r"(\S+) hours")
    )
    assert hours == pytest.approx(pace, abs=0.02 + 0.01 * pace)
    assert "phase two: phase 'two' follows 'one', which has not finished" in said
    assert not list(out.rglob("*")) if out.exists() else True
