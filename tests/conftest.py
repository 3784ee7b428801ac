"""Set before JAX starts: CPU only, eight devices for the sharding tests, strict ranks."""

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8".strip()

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import shape_checker  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(shape_checker.SHAPED, "shape_checker.check")

from mv2_jax import bundle  # noqa: E402
from mv2_jax.config import ScheduleConfig, StageConfig, UNetConfig, VAEConfig  # noqa: E402
from mv2_jax.infer import cache  # noqa: E402
from mv2_jax.text import WordTokenizer  # noqa: E402

FOLDER = Path(__file__).parent


# What `pytest -m quick` runs: a minute's worth on two cores that sees most ways to break things.
# Of other files it reads nothing.
QUICK = {
    "test_bundle.py", "test_checkout.py", "test_cli.py", "test_layout.py", "test_lookup.py",
    "test_params.py", "test_programs.py", "test_tensorfile.py",
    "convert/test_engine.py", "convert/test_hub.py", "convert/test_ldm.py",
    "convert/test_sources.py",
    "diffusion/test_keys.py", "diffusion/test_prediction.py", "diffusion/test_schedules.py",
    "infer/test_choices.py", "infer/test_frames.py", "infer/test_measured.py",
    "infer/test_metrics.py",
    "nn/test_layers.py", "nn/test_resample.py",
    "text/test_bpe.py", "text/test_emphasis.py", "text/test_words.py",
    "toybox/test_captions.py", "toybox/test_intervals.py",
    "train/test_optim.py", "train/test_overrides.py", "train/test_state.py",
}  # fmt: skip
# Programs of these folders' tests run once, on next to nothing: to optimise them costs half of the
# time. What is compared there holds for any order of rounding.
UNOPTIMISED = {"diffusion", "nn", "examples"}


def _inside(path):
    """A test file's path as `QUICK` has it."""
    return path.relative_to(FOLDER).as_posix()


def pytest_ignore_collect(collection_path, config):
    wanted = config.option.markexpr == "quick" and collection_path.name.startswith("test_")
    return True if wanted and _inside(collection_path) not in QUICK else None


def pytest_collection_modifyitems(items):
    for item in items:
        heavy = item.get_closest_marker("slow") or item.get_closest_marker("long")
        if _inside(item.path) in QUICK and not heavy:
            item.add_marker("quick")


@pytest.fixture(scope="module", autouse=True)
def optimised(request):
    """Compiles a module's programs as they are, or quickly where its folder is `UNOPTIMISED`."""
    before = jax.config.values["jax_disable_most_optimizations"]
    quickly = before or request.path.parent.name in UNOPTIMISED
    jax.config.update("jax_disable_most_optimizations", quickly)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def given_back():
    """After a module, gives the machine the memory that compiling left: half of what it took."""
    yield
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(scope="module", autouse=True)
def nothing_kept(request):
    """Commands that tests run keep no programs: what this process has compiled for another test, or
    had of JAX's cache, is not whole (mv2_jax.infer.kept)."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name not in ("test_parts.py", "test_kept.py"):
            patch.setattr(cache, "enable", lambda: None)
        yield


class FakeCascade:
    """Stands in for the networks: quick, and its pixels depend on every number it is given."""

    def __init__(self, weights):
        self.stages = weights.stages

    def idle(self, stage, **numbers):
        return {}

    def inputs(self, stage):
        return {"image", "looks", "control_image"}

    def _level(self, prompts, keys, negative, numbers):
        """One number in [-1, 1] a sample from everything but the other samples."""
        chance = np.asarray(jax.vmap(jax.random.uniform)(keys), np.float32)
        words = np.float32([sum(map(ord, prompt)) % 97 / 97 for prompt in prompts])
        more = numbers.pop("more", {})
        told = str(sorted(numbers.items())) + str({k: np.asarray(v).sum() for k, v in more.items()})
        rest = np.float32(len(negative) / 50 + sum(map(ord, told)) % 89 / 89)
        return np.sin(5 * (chance + words + rest)).astype(np.float32)

    def t2i(self, prompts, *, negative, keys, progress, **numbers):
        progress("compiling t2i", 0, 1)
        progress("compiling t2i", 1, 1)
        for done in range(int(numbers["steps"])):
            progress("t2i", done + 1, int(numbers["steps"]))
        level = self._level(prompts, keys, negative, numbers)
        ramp = np.linspace(-0.5, 0.5, self.stages["t2i"].size[1], dtype=np.float32)
        image = 0.5 * level[:, None, None, None] + ramp[None, None, :, None]
        return np.broadcast_to(image, (len(prompts), *self.stages["t2i"].size, 3))

    def i2v(self, prompts, image, *, negative, keys, progress, **numbers):
        stage = self.stages["i2v"]
        progress("i2v", 1, 1)
        level = self._level(prompts, keys, negative, numbers)[:, None, None, None, None]
        time = np.linspace(-0.4, 0.4, stage.frames, dtype=np.float32)[None, :, None, None, None]
        mean = image.mean(axis=(1, 2, 3))[:, None, None, None, None]
        shape = (len(prompts), stage.frames, *stage.size, 3)
        return np.broadcast_to(0.3 * mean + 0.3 * level + time, shape)

    def v2v(self, prompts, image, keyframes, *, negative, keys, progress, **numbers):
        stage = self.stages["v2v"]
        progress("v2v", 1, 1)
        level = self._level(prompts, keys, negative, numbers)[:, None, None, None, None]
        mean = keyframes.mean(axis=(2, 3))[:, :, None, None]
        shape = (len(prompts), stage.frames, *stage.size, 3)
        return np.broadcast_to(0.7 * mean + 0.2 * level, shape)

    def vfi(self, frames, times, *, progress):
        progress("vfi", 1, 1)
        made = []
        for before, after in zip(np.moveaxis(frames, 1, 0), np.moveaxis(frames, 1, 0)[1:]):
            made += [before + (after - before) * (k / times) for k in range(times)]
        return np.stack([*made, frames[:, -1]], axis=1)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """A cascade folder in order, whose parameters mean nothing."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    unet = UNetConfig(channels=(8,), transformers=(1,), heads=(1,))
    schedule = ScheduleConfig()
    stages = {
        "t2i": StageConfig(unet=unet, schedule=schedule, size=(32, 32), steps=4),
        "i2v": StageConfig(unet=unet, schedule=schedule, size=(24, 24), frames=4, steps=3),
        "v2v": StageConfig(unet=unet, schedule=schedule, size=(32, 32), frames=4, steps=2),
    }
    tree = {"w": np.ones(64, np.float32)}
    parts = {
        "vae": bundle.Part(tree, VAEConfig(channels=(8, 8, 8, 8)), "Apache-2.0", "nowhere"),
        "spatial": bundle.Part(tree, unet, "Apache-2.0", "nowhere"),
    }
    words = "a red ball cube bouncing over in the meadow snow".split()
    tokenizer = WordTokenizer(words).to_json()
    defaults = {"t2i": {"guidance": 3.0}, "vfi": {"fps": 8}}
    bundle.write(folder, parts, stages, tokenizer, name="tiny", defaults=defaults)
    return folder


@pytest.fixture
def fake_cascade(monkeypatch):
    """Puts the fake in the place of the cascade that `mv2 generate` loads."""
    from mv2_jax.infer import generate

    made_with = {"jax": "0", "platform": "cpu", "device": "fake", "dtype": "float32"}
    monkeypatch.setattr(generate, "load", lambda weights, *_: (FakeCascade(weights), made_with))
    monkeypatch.setattr(generate, "restage", lambda cascade, weights, _: FakeCascade(weights))
    return FakeCascade


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def generate(here, tiny_weights, fake_cascade):
    """`mv2 generate` with the quick networks; returns the exit code."""
    from mv2_jax import cli

    return lambda *args: cli.main(["generate", "--weights", str(tiny_weights), *map(str, args)])
