"""The video DiT of examples/: trained by a recipe, packed, reloaded, sampled, on meshes too."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mv2_jax import bundle, cascade, cli, sharding
from mv2_jax.diffusion import guidance, keys
from mv2_jax.errors import InputError
from mv2_jax.stages import i2v, stage
from mv2_jax.train import cli as training
from mv2_jax.train import recipe
from mv2_jax.train.placement import Placement

FOLDER = Path(__file__).parents[2] / "examples"
PROMPT = ["a red ball"]
# The example's recipe on networks of nothing.
RECIPE = """
from dataclasses import replace
from ml_collections import ConfigDict
from mv2_jax.config import to_dict
from video_dit import toybox_dit
from video_dit.backbone import VideoDiT

DIT = VideoDiT(in_channels=4, frames=3, width=24, depth=2, heads=2)

def get_config():
    made = toybox_dit.get_config()
    stage = replace(toybox_dit.STAGE, unet=DIT, size=(24, 40), frames=3, steps=2)
    cfg = made.phases.dit
    cfg.update(steps=2, batch=2, log_every=1)
    cfg.begin = dict.fromkeys(cfg.begin, {weights!r})
    cfg.model.i2v = ConfigDict(to_dict(stage))
    cfg.data.update(count=4, shard=2)
    cfg.sample.steps = 1
    cfg.optim.update(lr=3e-2, warmup=0, clock="steps")
    cfg.ema.decay = 0.0
    made.pack.sources = ({weights!r},)
    made.quick_compile = True
    return made
"""


@pytest.fixture(scope="module", autouse=True)
def path():
    """PYTHONPATH names the examples' folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A recipe, and the folder that it trains from."""
    root = tmp_path_factory.mktemp("dit")
    tiny.write(root / "given", tiny.make())
    (root / "own_dit.py").write_text(RECIPE.replace("{weights!r}", repr(str(root / "given"))))
    return root


@pytest.fixture(scope="module")
def runs(written):
    """What two steps of training leave."""
    assert training.main(str(written / "own_dit.py"), [], out=str(written / "runs")) == 0
    return written / "runs" / "own_dit"


@pytest.fixture(scope="module")
def four(runs):
    return cascade.load(bundle.read(runs / "cascade"))


def network():
    return importlib.import_module("video_dit.network")


def test_rotary_positions_are_turns_that_tell_differences_alone():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 3, 14)).astype(np.float32)
    places = rng.integers(0, 9, (5, 3)).astype(np.float32)
    turned = network().angles(jnp.asarray(places), 14)
    assert turned.shape == (5, 7) and turned.dtype == np.float32
    # Three frequencies of frames and two each of rows and columns, each axis alone.
    shares = [100 ** (-np.arange(n) / n) for n in (3, 2, 2)]
    want = np.concatenate([places[:, [a]] * share[None] for a, share in enumerate(shares)], 1)
    np.testing.assert_allclose(turned, want, atol=1e-5)
    points = (x[..., :7] + 1j * x[..., 7:]) * np.exp(1j * want)[None, :, None]
    got = np.asarray(network().rotate(jnp.asarray(x), turned))
    np.testing.assert_allclose(got, np.concatenate([points.real, points.imag], -1), atol=1e-5)
    moved = network().angles(jnp.asarray(places + 4), 14)
    again = np.asarray(network().rotate(jnp.asarray(x), moved))
    scores = [np.einsum("nqhd,nkhd->nhqk", one, one) for one in (got, again)]
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_before_training_its_output_and_what_steers_its_blocks_are_zero(four):
    backbone, context = four.keyframes.backbone, stage.Context(text=jnp.ones((1, 5, 8)))
    x, t = jnp.ones((1, 3, 3, 5, 4)), jnp.ones(1)
    context = context.replace(more={"reference": x[:, 0]})
    fresh = backbone.init(keys.seed(0), x, t, context)
    assert np.abs(backbone.apply(fresh, x, t, context)).max() == 0
    assert all(not leaf.any() for leaf in jax.tree.leaves(fresh["dit"]["blocks_0"]["steer"]))


def test_two_steps_of_a_recipe_are_stored_as_the_stage_s_own(runs):
    listed = json.loads((runs / "dit" / "weights" / "phase.json").read_text())["components"]
    assert listed.keys() == {"dit_i2v"}
    assert listed["dit_i2v"]["config"]["class"] == "video_dit.backbone:VideoDiT"
    packed = bundle.read(runs / "cascade")
    named = dataclasses.replace(tiny.PICTURE, rule="apart")  # which packing makes of silence
    assert "dit_i2v" in packed.components and packed.stages["t2i"] == named
    assert packed.defaults["i2v"] == {"guidance": 2.0, "image_guidance": 1.0}
    assert packed.defaults["vfi"] == {"between": 0}  # of the folder that it was packed from


def test_it_samples_and_hears_words_and_picture(four):
    cfg = four.keyframes
    assert cfg.trees == ("text_encoder", "image_encoder", "image_attn", "dit")
    pictures = np.stack([np.full((24, 40, 3), level, np.float32) for level in (-0.5, 0.5)])
    told = four.with_numbers("i2v", noise_prior=0.0)

    def made(prompt, image, seed=1):
        clip = told.i2v([prompt], image[None], keys=keys.seeds([seed]))
        assert clip.shape == (1, 3, 24, 40, 3) and np.isfinite(clip).all()
        return np.asarray(clip)

    first = made("a red ball", pictures[0])
    assert np.abs(first - made("a red ball", pictures[1])).max() > 1e-4
    assert np.abs(first - made("a blue cube", pictures[0])).max() > 1e-6
    both = told.i2v(PROMPT * 2, pictures, keys=keys.seeds([1, 2]))
    np.testing.assert_allclose(both[:1], first, atol=1e-5)


def test_a_command_samples_it(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = "--t2i-steps 1 --i2v-steps 1 --v2v-steps 1".split()
    assert cli.main(["generate", *PROMPT, "--weights", str(runs / "cascade"), *steps]) == 0
    assert len(list(tmp_path.glob("*.mp4"))) == 1


def asked(four, batch):
    rng = np.random.default_rng(2)
    ids, empty = four.ids(PROMPT * batch)
    image = rng.uniform(-1, 1, (batch, 24, 40, 3)).astype(np.float32)
    z = rng.standard_normal((batch, *four.keyframes.latent_shape)).astype(np.float32)
    return {"ids": ids, "negative": empty, "image": image}, z


def close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * max(np.abs(b).max(), 1e-3)


def on_mesh(function, params, rest, sizes, rules):
    mesh = sharding.make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
    with jax.set_mesh(mesh):
        return jax.device_get(jax.jit(function)(sharding.shard_params(params, mesh, rules), *rest))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 2, 2, 1),
        *(pytest.param(s, marks=SLOW) for s in ((4, 1, 1, 1), (1, 1, 4, 1), (1, 2, 1, 2))),
    ],
)
def test_a_chain_on_a_mesh_equals_one_device(four, sizes):
    cfg, params = four.keyframes, four.parameters("i2v")
    given, z = asked(four, 2)  # three frames, which no two devices share out evenly

    def run(params, given, reference):
        each = keys.per_sample(keys.seed(3), 2)
        scales = guidance.make(3.0, 1.5)
        given = (params, cfg, given, reference, each, scales)
        return i2v.sample(*given, noise_prior=1.0, steps=2)

    rest = (given, z[:, 0])
    want = jax.device_get(jax.jit(run)(params, *rest))
    close(on_mesh(run, params, rest, sizes, stage.rules(cfg)), want)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 2, 2, 1), (2, 1, 2, 1), (2, 2, 1, 1)])
def test_a_loss_and_its_slopes_on_a_mesh_equal_one_device(four, sizes):
    cfg, params = four.keyframes, four.parameters("i2v")
    cfg = dataclasses.replace(cfg, remat=True)
    given, z = asked(four, 2)

    def run(params, given, z):
        batch = {**given, "latent": z, "null_ids": given["negative"][0]}
        return jax.value_and_grad(lambda p: stage.loss(p, cfg, batch, keys.seed(3))[0])(params)

    want = jax.device_get(jax.jit(run)(params, given, z))
    close(on_mesh(run, params, (given, z), sizes, stage.rules(cfg)), want)


# XLA:CPU aborts the process where one of eight devices is 40 s late, as happens beside other tests.
@pytest.mark.long
def test_a_recipe_trains_it_on_a_mesh_as_on_one_device(written, runs):
    sizes = {"data": 2, "fsdp": 2, "context": 2}
    settings = [f"dit.mesh.{name}={size}" for name, size in sizes.items()] + ["dit.batch=4"]
    trained = []
    for name, own in (("alone", ["dit.batch=4"]), ("spread", settings)):
        out = str(written / name)
        assert training.main(str(written / "own_dit.py"), own, "dit", out=out) == 0
        folder = written / name / "own_dit" / "dit" / "weights"
        trained.append(recipe.components_in(folder)["dit_i2v"].params)
    for a, b in zip(*map(jax.tree.leaves, trained), strict=True):  # stored in half precision
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=2e-3)


# In V2V's place after I2V's, whose weights it begins as.
REFINED = """

refine = get_config

def get_config():
    made = refine()
    cfg = copy.deepcopy(made.phases.dit)
    cfg.task, cfg.model = "v2v", ConfigDict({"v2v": cfg.model.i2v})
    with cfg.sample.unlocked():
        cfg.sample.strength = 0.5
    made.order = ("dit", "refined")
    with made.unlocked():
        made.phases.refined = cfg
    return made
"""


@pytest.mark.slow
def test_the_v2v_task_trains_it_too(written, tmp_path):
    text = "import copy\n" + (written / "own_dit.py").read_text() + REFINED
    (tmp_path / "own_v2v.py").write_text(text)
    assert training.main(str(tmp_path / "own_v2v.py"), [], out=str(tmp_path / "runs")) == 0
    folder = tmp_path / "runs" / "own_v2v"
    before, after = (
        recipe.components_in(folder / phase / "weights")[name].params
        for phase, name in (("dit", "dit_i2v"), ("refined", "dit_v2v"))
    )
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before, after)))]
    assert 0 < max(moved) < 0.5  # by two steps, from where I2V's training ended
    four = cascade.load(bundle.read(folder / "cascade"))
    assert {"dit_i2v", "dit_v2v"} <= four.params.keys() and "motion" not in four.refined.trees
    picture, clip = np.zeros((1, 24, 40, 3), np.float32), np.zeros((1, 3, 24, 40, 3), np.float32)
    out = four.v2v(PROMPT, picture, clip, keys=keys.seeds([1]))
    assert out.shape == clip.shape and np.isfinite(out).all()
    # What it does not train it must be given.
    cfg = recipe.load(str(tmp_path / "own_v2v.py"))[1].phases.refined
    begin = recipe.components_in(written / "given")
    begin = {name: begin[name] for name in ("vae", "text_encoder", "image_encoder", "image_attn")}
    fresh = recipe.make_task(cfg, begin, tmp_path / "task")
    assert fresh.init(keys.seed(0)).keys() == {"dit"}
    with pytest.raises(InputError, match="needs the component 'image_attn'"):
        recipe.make_task(cfg, {k: v for k, v in begin.items() if k != "image_attn"}, tmp_path)


def test_training_and_cascades_lay_it_out_by_its_own_rows(four, runs):
    tree = {"blocks_0": {"steer": {"ada": {"kernel": np.ones((24, 144), np.float32)}}}}
    sizes = {"data": 2, "fsdp": 4}
    rows = four.keyframes.backbone.rules
    kernel = jax.tree.leaves(Placement(sizes, rows).params(tree))[0]
    assert kernel.sharding.shard_shape(kernel.shape) == (24, 36)
    with pytest.raises(ValueError, match="fit no rule"):
        Placement(sizes).params(tree)
    mesh = sharding.make_mesh(**sizes)
    held = cascade.load(bundle.read(runs / "cascade"), mesh=mesh).params["dit_i2v"]
    kernel = held["blocks_0"]["steer"]["ada"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (24, 36)


def test_a_unet_still_wants_its_spatial_weights(written):
    cfg = recipe.load("toybox/i2v")[1].phases.i2v
    begin = recipe.components_in(written / "given")
    del begin["spatial"]
    with pytest.raises(InputError, match="needs the component 'spatial'"):
        recipe.make_task(cfg, begin, written / "task")


def test_it_is_compared_with_the_mean(four):
    own = importlib.import_module("video_dit.against_mean")
    still = four.with_params(dit_i2v=jax.tree.map(jnp.zeros_like, four.params["dit_i2v"]))
    (mean, line, zero), (_, _, network) = (
        [row[0] for row in own.main(each, count=4, batch=2, levels=(0.001,)).values()]
        for each in (still, four)
    )
    # At next to no noise v is the noise, of mean 0 and variance 1: a network that says 0 is as
    # good as the mean. 720 numbers are drawn.
    assert abs(mean - 1) < 0.2 and abs(zero - mean) < 0.1 and 0 < line <= mean
    assert abs(network - zero) > 1e-3


@pytest.mark.long
def test_within_minutes_it_errs_less_than_half_as_much_as_the_mean(tmp_path):
    jax.config.update("jax_disable_most_optimizations", False)  # `optimised` restores it
    own = importlib.import_module("video_dit.against_mean")
    assert training.main(str(FOLDER / "video_dit" / "toybox_dit.py"), [], out=str(tmp_path)) == 0
    made = own.main(cascade.load(bundle.read(tmp_path / "toybox_dit" / "cascade")))
    assert np.mean(made["network"]) < 0.5 * np.mean(made["mean"])  # 0.44
