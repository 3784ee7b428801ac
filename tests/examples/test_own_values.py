"""Values from outside the package, each used in training from a recipe file, saved, sampled."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from mv2_jax import config, params
from mv2_jax.configs import smoke
from mv2_jax.diffusion import guidance, keys, losses, prediction, process, samplers
from mv2_jax.errors import InputError
from mv2_jax.models.vae import AutoencoderKL
from mv2_jax.stages import stage as stages
from mv2_jax.stages import t2i
from mv2_jax.text import from_json
from mv2_jax.train import recipe

FOLDER = Path(__file__).parents[2] / "examples"
MARK = "phase.json"
# The recipe's is made to compile in a minute.
UNET = replace(smoke.SPATIAL, channels=(8,), transformers=(1,), heads=(2,))


@pytest.fixture(scope="module", autouse=True)
def quick():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A folder of weights with an autoencoder of nothing."""
    folder = tmp_path_factory.mktemp("vae")
    shapes = jax.eval_shape(AutoencoderKL(smoke.VAE).init, keys.seed(0), np.zeros((1, 64, 64, 3)))
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda s: np.float16(0.05 * rng.normal(size=s.shape)), shapes["params"])
    params.save(folder / "vae.safetensors", tree, {})
    listed = {"file": "vae.safetensors", "config": config.to_dict(smoke.VAE)}
    (folder / MARK).write_text(json.dumps({"components": {"vae": listed}}))
    return folder


def test_own_process_sampler_and_loss(autoencoder, tmp_path):
    """Named by recipe files, trained with, kept, read back and sampled, in one run of all three."""
    short, made = recipe.load(str(FOLDER / "own_process.py"))
    made.order = ("t2i",)
    cfg = made.phases.t2i
    with cfg.unlocked():
        cfg.begin = ConfigDict({"vae": str(autoencoder)})
        cfg.model.t2i.unet = ConfigDict(config.to_dict(UNET))
        cfg.loss.shape = recipe.load(str(FOLDER / "own_loss.py"))[1].phases.t2i.loss.shape
    cfg.model.t2i.size = (64, 64)
    cfg.data.update(sizes=(64,), count=8, shard=8)
    cfg.update(batch=2, steps=2)
    assert recipe.run_phase(tmp_path, short, made, "t2i", resume=True).state == "finished"
    folder = tmp_path / short / "t2i"
    assert list((folder / "samples").iterdir())  # drawn from the averaged weights at the end
    told = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert told["loss"] == told["charbonnier"] > 0
    kept = json.loads((folder / "config.json").read_text())
    assert kept["loss"]["shape"]["class"] == "own_loss:Charbonnier"
    assert recipe.run_phase(tmp_path, short, made, "t2i", resume=True).state == "kept"

    index = json.loads((folder / "weights" / MARK).read_text())
    saved, held = index["stages"]["t2i"], recipe.components_in(folder / "weights")
    assert saved["schedule"]["class"] == "own_process:Circle"
    assert saved["sampler"] == "own_sampler:plms2"
    stage, words = config.from_dict(saved), from_json(index["tokenizer"])
    net = stages.build(
        "t2i", stage, {"text_encoder": held["text_encoder"].config}, smoke.VAE.factor
    )
    whole = {name: params.cast(held[name].params, np.float32) for name in net.trees}
    asked = {"ids": words.encode(["a red ball", "a blue cube"]), "negative": words.encode(["", ""])}
    made = np.asarray(t2i.sample(whole, net, asked, keys.seeds([1, 2]), guidance.make(3.0)))
    assert made.shape == (2, 1, 4, 4, 8) and np.isfinite(made).all()
    assert np.abs(made[0] - made[1]).max() > 0.1


def test_the_process_is_what_it_says():
    """A sample of a Gaussian is found, by the package's samplers as by the one beside it."""
    circle = process.of(config.from_dict({"class": "own_process:Circle"}))
    assert isinstance(circle, process.Process)
    point = circle.at(np.linspace(0, 1, 5, dtype=np.float32))
    np.testing.assert_allclose(point.alpha**2 + point.sigma**2, 1.0, rtol=1e-6)
    noise = keys.normal(keys.seeds([1, 2]), (3, 4))
    for name in ("own_sampler:plms2", "ddim", "euler_a", "dpmpp_2m", "unipc"):
        sampler = samplers.make(name)
        grid = sampler.grid(circle, 4)

        def predict(x, point):  # what a network that knows x0 = 0.7 would say
            return prediction.from_x0(circle.prediction, 0.7 + 0 * x, x, point.alpha, point.sigma)

        state = samplers.start(sampler, grid, grid.init_scale * noise, keys.seeds([1, 2]))
        denoise = samplers.denoiser(predict, circle.prediction)
        made = samplers.sample(denoise, sampler, grid, state).x
        np.testing.assert_allclose(made, np.full_like(made, 0.7), atol=2e-6, err_msg=name)


def test_the_loss_is_what_it_says():
    made = losses.of({"class": "own_loss:Charbonnier", "width": 0.5})
    assert losses.of("own_loss:Charbonnier").width == 0.1
    own, x0 = keys.seeds([1, 2, 3]), np.ones((3, 4, 4, 2), np.float32)
    loss, metrics = losses.diffusion_loss(lambda x, t: x * 0, x0, own, process.Flow(), made)
    eps = keys.normal(keys.fold(own, "noise"), (4, 4, 2))
    np.testing.assert_allclose(loss, np.mean(np.sqrt((eps - 1) ** 2 + 0.25) - 0.5), rtol=1e-5)
    assert metrics.keys() == {"charbonnier"}
    # Its timesteps serve the package's loss as well.
    cfg = losses.LossConfig(sampling="own_loss:squared")
    u = keys.uniform(keys.fold(own, "timestep"))
    np.testing.assert_allclose(losses.positions(own, cfg), u**2, rtol=1e-6)


@pytest.mark.parametrize(
    "value, said",
    [
        ({"smapling": "uniform"}, "LossConfig has no field 'smapling'; did you mean 'sampling'"),
        ({"class": "own_loss:Charbonier"}, "own_loss has no 'Charbonier'; did you mean 'Charb"),
        ("own_lss:Charbonnier", "there is no module 'own_lss'"),
        ({"class": "Flow"}, "is no loss"),
        ("LosConfig", r"unknown loss 'LosConfig' \(known: LossConfig\); did you mean"),
    ],
)
def test_wrong_losses_get_one_line(value, said):
    with pytest.raises(InputError, match=said) as caught:
        losses.of(value)
    assert "\n" not in str(caught.value)
