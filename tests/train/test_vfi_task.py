"""Training the GAN interpolator: its samples, its losses, and a few steps of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import GANVFIConfig, VAEConfig, to_dict
from mv2_jax.configs import vfi as videos_recipe
from mv2_jax.configs.toybox import vfi as toybox_recipe
from mv2_jax.errors import InputError
from mv2_jax.infer import media
from mv2_jax.models.vae import AutoencoderKL
from mv2_jax.params import cast
from mv2_jax.stages import vfi as rife
from mv2_jax.train import features, loop, triplets, videos
from mv2_jax.train.phase import phase
from mv2_jax.train.task import Component
from mv2_jax.train.tasks import vfi
from mv2_jax.train.toybox import triplets as toybox_triplets

TINY = GANVFIConfig(
    width=16, multipliers=(1,), codes=8, norm_groups=4, window=4, head_width=16, taps=3,
    head_widths=(8,), head_slope=0.1, patch_size=4, half_heads=False, time_width=8,
)  # fmt: skip
VAE = VAEConfig(
    latent_channels=4, channels=(16, 16), layers_per_block=1, norm_groups=4, mid_attention=False,
    patch_size=4,
)  # fmt: skip


def autoencoder():
    shape = jax.eval_shape(AutoencoderKL(VAE).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    random = np.random.default_rng(0)
    tree = jax.tree.map(lambda s: np.float32(random.normal(size=s.shape) * 0.1), shape["params"])
    return Component(tree, VAE)


def settings(**changes):
    base = toybox_recipe.get_config().phases.vfi
    base = {"loss": base.loss.to_dict(), "critic": {"width": 8, "layers": 1}, **changes}
    data = {"count": 8, "shard": 8, "size": 48, "side": 32, "gap": (0.1, 0.2), "among": 2}
    return phase("vfi", model={"vfi": to_dict(TINY)}, **{"data": data, "batch": 4, **base})


def moving(path, count=9):
    """A video whose grey grows by 8 levels a frame, with a bar that wanders."""
    frames = np.zeros((count, 48, 64, 3), np.uint8)
    for i in range(count):
        frames[i] = 40 + 8 * i
        frames[i, :, 4 * i : 4 * i + 8] += 60
    media.write_video(path, frames, 10)


def test_toybox_samples_depend_on_their_number_alone_and_hold_motion():
    drawn = toybox_triplets.draw(3, np.arange(4), 48, 32, (0.1, 0.2))
    assert {k: v.shape for k, v in drawn.items() if k != "time"} == dict.fromkeys(
        ("first", "second", "target"), (4, 32, 32, 3)
    )
    assert drawn["target"].dtype == np.uint8 and ((drawn["time"] > 0) & (drawn["time"] < 1)).all()
    again = toybox_triplets.draw(3, np.arange(3, 7), 48, 32, (0.1, 0.2))
    assert np.array_equal(again["target"][0], drawn["target"][3])
    assert not np.array_equal(again["target"][1], drawn["target"][1])
    assert (drawn["first"] != drawn["second"]).any(axis=(1, 2, 3)).all()


def test_guesses_are_the_light_model_s_and_samples_are_turned_alike():
    drawn = toybox_triplets.draw(0, np.arange(3), 48, 32, (0.1, 0.2))

    def light(first, second, times):
        share = times[..., None, None, None]
        return first[:, None] * (1 - share) + second[:, None] * share

    found = triplets.with_guess(light, drawn, at_once=2)
    blend = media.to_float(drawn["first"][2]) * (1 - drawn["time"][2])
    blend = blend + media.to_float(drawn["second"][2]) * drawn["time"][2]
    assert np.abs(found["guess"][2].astype(int) - media.to_uint8(blend)).max() <= 1
    same = {name: found["target"] for name in triplets.IMAGES} | {"time": found["time"]}
    seen = [triplets.turned(same, 1, step) for step in range(6)]
    for batch in seen:
        for name in triplets.IMAGES:
            assert np.array_equal(batch[name], batch["first"])
    assert len({batch["first"].tobytes() for batch in seen}) > 1


def test_of_several_draws_the_one_with_the_worst_guess_is_kept(tmp_path):
    task = vfi.VFITask(settings(), {"vae": autoencoder()}, tmp_path / "vfi")
    kept = task.shards().take(np.arange(8))
    drawn = toybox_triplets.draw(0, np.arange(16), 48, 32, (0.1, 0.2))
    params, cfg = rife.shipped()
    params = cast(params, np.float32)
    every = triplets.with_guess(lambda *pair: rife.between(params, cfg, *pair), drawn)
    off = np.abs(every["guess"].astype(int) - every["target"]).mean(axis=(1, 2, 3)).reshape(8, 2)
    assert len({*off.argmax(axis=1)}) == 2  # neither is always the worse
    for row, worst in enumerate(off.argmax(axis=1)):
        for name in (*triplets.IMAGES, "time"):
            np.testing.assert_array_equal(kept[name][row], every[name][2 * row + worst])


def test_samples_of_videos_lie_where_their_time_says(tmp_path):
    (tmp_path / "below").mkdir()
    moving(tmp_path / "below" / "a.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    paths = videos.find(tmp_path, 32)
    assert [path.name for path in paths] == ["a.mp4"]
    drawn = videos.draw(paths, 0, np.arange(6), 32, (2, 5))
    # The corner's grey tells the frame: the least level of each picture is its background.
    grey = {
        name: np.sort(drawn[name].reshape(6, -1), axis=1)[:, 300] for name in triplets.IMAGES[:3]
    }
    grey = {name: level.astype(float) for name, level in grey.items()}
    expected = grey["first"] + drawn["time"] * (grey["second"] - grey["first"])
    assert np.abs(grey["target"] - expected).max() < 3
    assert (grey["second"] - grey["first"] > 12).all()
    again = videos.draw(paths, 0, np.arange(3, 4), 32, (2, 5))
    assert np.array_equal(again["target"][0], drawn["target"][3])


@pytest.mark.parametrize("what", ["unnamed", "missing", "empty", "small", "still"])
def test_folders_without_anything_to_learn_from(tmp_path, what):
    root, says, side = tmp_path, "", 32
    if what == "unnamed":
        root, says = "", "--set data.root=FOLDER"
    elif what == "missing":
        root, says = tmp_path / "nowhere", "no folder"
    elif what == "empty":
        says = "no videos under"
    elif what == "small":
        moving(tmp_path / "a.mp4")
        says, side = "at least 256 pixels", 256
    else:
        media.write_video(tmp_path / "a.mp4", np.full((9, 48, 64, 3), 90, np.uint8), 10)
        says = "no moving pair"
    with pytest.raises(InputError, match=says):
        videos.draw(videos.find(root, side), 0, np.arange(1), side, (2, 4))


def test_features_tell_pictures_apart_and_do_not_mind_equal_ones():
    held = autoencoder()
    x = np.random.default_rng(0).uniform(-1, 1, size=(2, 32, 32, 3)).astype(np.float32)
    far = jax.jit(lambda a, b: features.distance(held.params, VAE, a, b))
    assert float(far(x, x)) == pytest.approx(0.0, abs=1e-6)
    assert 0 < float(far(x, 0.9 * x)) < float(far(x, -x))
    planes = features.features(held.params, VAE, x)
    assert sorted({plane.shape[1:3] for plane in planes}) == [(4, 4), (8, 8)]


def test_losses_are_scalars_and_settings_that_do_not_fit_are_told(tmp_path):
    begin = {"vae": autoencoder()}
    task = vfi.make(settings(), begin, tmp_path / "vfi")
    batch = {name: np.zeros((4, 32, 32, 3), np.uint8) for name in triplets.IMAGES}
    batch |= {"time": np.full(4, 0.5, np.float32), "critic": np.ones(4, np.float32)}
    weights = jax.eval_shape(task.init, jax.random.key(0))
    assert set(weights) == {"gan", "critic"}
    loss, metrics = jax.eval_shape(task.loss, weights, task.frozen, batch, jax.random.key(0))
    assert loss.shape == () and {"psnr", "psnr_light", "sharpness"} <= set(metrics)
    assert set(task.components(weights)) == set(task.configs(weights)) == {"vfi_gan"}
    assert set(task.components(weights)["vfi_gan"]) == {"light", "gan"}
    with pytest.raises(InputError, match="needs the component 'vae'"):
        vfi.make(settings(), {}, tmp_path)
    data = {"count": 8, "shard": 8, "size": 48, "side": 40, "gap": (0.1, 0.2), "among": 1}
    with pytest.raises(InputError, match="40 is not a multiple of the network's 32"):
        vfi.make(settings(data=data), begin, tmp_path)
    with pytest.raises(InputError, match=r"data\.among: of 0 draws"):
        vfi.make(settings(data={**data, "side": 32, "among": 0}), begin, tmp_path)
    with pytest.raises(InputError, match=r"--set data\.root"):
        cfg = videos_recipe.get_config().phases.vfi
        vfi.make(cfg, begin, tmp_path)


@pytest.mark.slow
def test_it_learns_one_batch_beyond_the_light_model(tmp_path, monkeypatch):
    jax.config.update("jax_disable_most_optimizations", True)
    weights = {**settings().loss.to_dict(), "critic_from": 30}
    optim = {"lr": 4e-3, "warmup": 5, "b1": 0.5, "b2": 0.9, "weight_decay": 0.0}
    cfg = settings(loss=weights, optim=optim)
    cfg.update(steps=150, name="test/vfi", log_every=10)
    made = vfi.VFITask(cfg, {"vae": autoencoder()}, tmp_path / "vfi")
    drawn = toybox_triplets.draw(0, np.arange(4), 48, 32, (0.2, 0.3))
    # A light model that only blends leaves something to learn.
    blend = drawn["first"].astype(np.float32) * (1 - drawn["time"][:, None, None, None])
    blend += drawn["second"] * drawn["time"][:, None, None, None]
    batch = {**drawn, "guess": np.uint8(blend), "critic": np.ones(4, np.float32)}

    def fixed(seed, start):
        for step in range(start, 10**6):
            yield {**batch, "critic": np.full(4, step >= 30, np.float32)}

    monkeypatch.setattr(made, "batches", fixed)
    monkeypatch.setattr(made, "sample", None)
    loop.run(made.task(), cfg, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    jax.config.update("jax_disable_most_optimizations", False)
    assert rows[0]["psnr"] == pytest.approx(rows[0]["psnr_light"], abs=1e-3)
    assert rows[0]["doubt_weight"] == 0 and rows[-1]["doubt_weight"] > 0
    assert rows[-1]["psnr"] > rows[-1]["psnr_light"] + 10  # 14.5 when written
