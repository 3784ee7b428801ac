import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

from mv2_jax import params as trees
from mv2_jax.config import VAEConfig, to_dict
from mv2_jax.errors import InputError
from mv2_jax.models.vae import AutoencoderKL, scale_latents
from mv2_jax.train import loop, recipe
from mv2_jax.train.phase import phase
from mv2_jax.train.task import Component
from mv2_jax.train.tasks import vae
from mv2_jax.train.toybox import worlds

TINY = VAEConfig(
    latent_channels=8,
    channels=(16, 32),
    layers_per_block=1,
    norm_groups=4,
    mid_attention=False,
    patch_size=4,
)


def config(**settings):
    base = {
        "name": "test/vae",
        "steps": 60,
        "batch": 4,
        "log_every": 20,
        "model": {"vae": to_dict(TINY)},
        "data": {"views": ("32/16", "32")},
        "loss": {"l1": 1.0, "l2": 1.0, "edge": 1.0, "edge_scales": 2, "kl": 1e-4},
        "optim": {"lr": 4e-3, "warmup": 5},
    }
    return phase("vae", **{**base, **settings})


def test_batches_alternate_views_and_depend_on_the_step_alone():
    task = vae.make(config(), {}, None)
    first = task.batches(0, 0)
    images = [np.asarray(next(first)["image"]) for _ in range(3)]
    assert [x.shape for x in images] == [(16, 16, 16, 3), (4, 32, 32, 3), (16, 16, 16, 3)]
    later = np.asarray(next(task.batches(0, 2))["image"])
    assert np.array_equal(later, images[2]) and not np.array_equal(later, images[0])
    assert not np.array_equal(later, np.asarray(next(task.batches(1, 2))["image"]))
    assert max(np.abs(x).max() for x in images) <= 1.0


def test_it_overfits_one_batch_and_its_weights_come_with_a_measured_scale(tmp_path):
    cfg = config()
    batch = {"image": worlds.stills(worlds.step_key(0, 0), 4, 32, 0)}

    def fixed(seed, start):
        while True:
            yield batch

    made = vae.make(cfg, {}, tmp_path)
    task = type(made)(**{**vars(made), "batches": fixed, "sample": None})
    outcome = loop.run(task, cfg, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["psnr"] > rows[0]["psnr"] + 7  # 7.6 when written
    recipe.write_weights(tmp_path / "weights", task, outcome, cfg, {})
    held = recipe.components_in(tmp_path / "weights")["vae"]
    x = worlds.stills(worlds.step_key(5, 0), 64, 32, 0)
    mean, _ = AutoencoderKL(held.config).apply({"params": held.params}, x, method="encode")
    z = scale_latents(mean, held.config)
    assert abs(float(z.mean())) < 0.1 and abs(float(z.std()) - 1) < 0.1
    assert held.config.factor == TINY.factor


def test_loss_terms():
    mean, logvar = jnp.full((1, 2, 2, 3), 2.0), jnp.zeros((1, 2, 2, 3))
    assert float(vae.kl_mean(mean, logvar)) == pytest.approx(2.0)
    assert float(vae.kl_mean(0 * mean, logvar)) == 0.0
    flat, step = jnp.ones((1, 8, 8, 3)), jnp.zeros((1, 8, 8, 3)).at[:, :, 4:].set(1.0)
    assert float(vae.edge_loss(flat, 3)) == 0.0
    # One jump of 1 among 7, 3 and 1 neighbouring columns at the three scales.
    assert float(vae.edge_loss(step, 3)) == pytest.approx((1 / 7 + 1 / 3 + 1) / 3)
    x = jnp.zeros((1, 4, 4, 3))
    assert float(vae.psnr(x, x + 0.2)) == pytest.approx(20.0, abs=1e-4)


@pytest.mark.parametrize("view", ["33", "32/9", "32/64", "big"])
def test_views_that_do_not_fit(view):
    with pytest.raises(InputError, match=r"data\.views"):
        vae.make(config(data={"views": (view,)}), {}, None)


def test_frozen_things_do_not_touch_the_key_of_a_step():
    assert not jnp.array_equal(
        jax.random.key_data(worlds.step_key(0, 1)), jax.random.key_data(worlds.step_key(0, 2))
    )


def test_the_decoder_alone_leaves_latents_as_they_are():
    x = worlds.stills(worlds.step_key(1, 0), 2, 32, 0)
    whole = jax.eval_shape(AutoencoderKL(TINY).init, jax.random.key(0), x)["params"]
    scaled = VAEConfig(**{**vars(TINY), "scaling_factor": 0.7})
    begin = {"vae": Component(whole, scaled)}
    task = vae.make(config(train=("decoder",)), begin, None)
    mine = task.init(jax.random.key(1))
    assert set(task.frozen) == {"encoder", "quant_conv"} and "decoder" in mine
    loss, _ = jax.eval_shape(task.loss, mine, task.frozen, {"image": x}, jax.random.key(2))
    assert loss.shape == ()
    assert set(task.components(mine)["vae"]) == set(whole)
    assert task.configs(mine) == {"vae": scaled}
    with pytest.raises(InputError, match="did you mean 'decoder'"):
        vae.make(config(train=("decode",)), begin, None)
    with pytest.raises(InputError, match="from an autoencoder in `begin`"):
        vae.make(config(train=("decoder",)), {}, None)


def test_a_larger_decoder_begins_with_what_fits_over_the_same_latents():
    x = worlds.stills(worlds.step_key(1, 0), 2, 32, 0)
    whole = jax.jit(AutoencoderKL(TINY).init)(jax.random.key(0), x)["params"]
    begin = {"vae": Component(whole, TINY)}
    settings = {"train": ("decoder",), "decoder_channels": (8, 16, 32)}
    held = trees.flatten(whole["decoder"])
    task = vae.make(config(**settings), begin, None)
    mine = task.init(jax.random.key(1))
    sizes = task.configs(mine)["vae"]
    assert (sizes.decoder_channels, sizes.decoder_patch, sizes.factor) == ((8, 16, 32), 2, 8)
    assert task.frozen == {name: whole[name] for name in ("encoder", "quant_conv")}
    assert "up_blocks_2" in mine["decoder"] and "encoder" not in mine
    for name, leaf in trees.flatten(mine["decoder"]).items():
        fits = name in held and held[name].shape == leaf.shape
        assert not fits or np.array_equal(leaf, held[name])
        assert fits or not name.startswith(("conv_in", "mid_block", "up_blocks_0"))
    made = task.components(mine)["vae"]
    z = AutoencoderKL(TINY).apply({"params": whole}, x, method="encode")[0]
    for cfg, tree in ((TINY, whole), (sizes, made)):
        seen = AutoencoderKL(cfg).apply({"params": tree}, x, method="encode")[0]
        np.testing.assert_array_equal(seen, z)
    assert AutoencoderKL(sizes).apply({"params": made}, z, method="decode").shape == x.shape
    # Once it has them, training goes on with them.
    again = vae.make(config(**settings), {"vae": Component(made, sizes)}, None)
    same = again.init(jax.random.key(2))
    assert jax.tree.all(jax.tree.map(np.array_equal, same["decoder"], mine["decoder"]))
    with pytest.raises(InputError, match="5 levels do not fit in a factor of 8"):
        vae.make(config(train=("decoder",), decoder_channels=(8,) * 5), begin, None)
    with pytest.raises(InputError, match="a new decoder must be trained"):
        vae.make(config(train=("encoder",), decoder_channels=(8,) * 3), begin, None)


def test_a_critic_pulls_the_decoder_once_it_takes_part_and_stays_behind():
    x = jnp.zeros((1, 16, 16, 3))
    whole = jax.jit(AutoencoderKL(TINY).init)(jax.random.key(0), x)["params"]
    begin = {"vae": Component(whole, TINY)}
    loss = {**config().loss.to_dict(), "critic": 0.5, "critic_from": 1}
    cfg = config(train=("decoder",), critic={"width": 4, "layers": 1}, loss=loss)
    task, plain = vae.make(cfg, begin, None), vae.make(config(train=("decoder",)), begin, None)
    params, key = task.init(jax.random.key(1)), jax.random.key(2)
    own = {name: tree for name, tree in params.items() if name != "critic"}
    assert set(task.components(params)["vae"]) == set(whole)

    def gradient(task):
        return quick(jax.grad(lambda p, b: task.loss(p, task.frozen, b, key), has_aux=True))

    batches = task.batches(0, 0)
    image = next(batches)["image"]
    with_critic, without = gradient(task), gradient(plain)
    idle, on = (
        with_critic(params, {"image": image, "critic": jnp.full((len(image),), share)})
        for share in (0.0, 1.0)
    )
    alone = without(own, {"image": image})
    assert next(batches)["critic"].all()

    def apart(one, other):
        pairs = zip(jax.tree.leaves({n: one[n] for n in own}), jax.tree.leaves(other))
        return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)

    def size(tree):
        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))

    assert apart(idle[0], alone[0]) < 1e-4 and size(idle[0]["critic"]) == 0
    assert apart(on[0], alone[0]) > 0.05 and size(on[0]["critic"]) > 1e-3
    # Down the pull alone, the critic doubts less.
    pull = jax.tree.map(lambda a, b: a - b, {n: on[0][n] for n in own}, alone[0])
    step = 1e-2 / size(pull)
    nearer = jax.tree.map(lambda p, g: p - step * g, own, pull)
    after = with_critic({**params, **nearer}, {"image": image, "critic": jnp.ones(len(image))})
    assert after[1]["doubt"] < on[1]["doubt"]
