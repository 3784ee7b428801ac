import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import params as trees
from mv2_jax.errors import InputError
from mv2_jax.train import chosen, lora, optim, recipe
from mv2_jax.train.state import create, make_step

from .regression import config, task

TREE = {
    "attn": {"to_q": {"kernel": jnp.ones((4, 6))}, "norm": {"scale": jnp.ones(6)}},
    "conv": {"kernel": jnp.ones((3, 3, 2, 5)), "bias": jnp.zeros(5)},
}


def test_fresh_factors_change_nothing():
    factors = lora.init(jax.random.key(0), TREE, rank=2)
    assert factors["conv"]["kernel"]["down"].shape == (18, 2)
    assert "norm" not in factors["attn"] and "bias" not in factors["conv"]
    merged = lora.merge(TREE, factors)
    assert jax.tree.all(jax.tree.map(np.array_equal, merged, TREE))


def test_merged_kernels_act_as_the_kernel_and_the_low_rank_path_beside_it():
    factors = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape),
        lora.init(jax.random.key(0), TREE, rank=2),
    )
    merged = lora.merge(TREE, factors, 0.5)
    x = jax.random.normal(jax.random.key(1), (3, 4))
    pair = factors["attn"]["to_q"]["kernel"]
    beside = x @ TREE["attn"]["to_q"]["kernel"] + 0.5 * (x @ pair["down"]) @ pair["up"]
    np.testing.assert_allclose(x @ merged["attn"]["to_q"]["kernel"], beside, atol=1e-5)

    # A convolution: first by the window's factors to `rank` channels, then across channels.
    picture = jax.random.normal(jax.random.key(2), (1, 7, 5, 2))
    pair = factors["conv"]["kernel"]

    def conv(kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(picture, kernel, (1, 1), "SAME", dimension_numbers=dims)

    low = conv(pair["down"].reshape(3, 3, 2, 2)) @ pair["up"]
    np.testing.assert_allclose(
        conv(merged["conv"]["kernel"]), conv(TREE["conv"]["kernel"]) + 0.5 * low, atol=1e-4
    )


def test_only_what_is_asked_for_is_adapted_and_only_factors_learn():
    factors = lora.init(jax.random.key(0), TREE, rank=1, match=r"to_[qkv]/")
    assert set(factors) == {"attn"}
    slopes = jax.grad(lambda f: jnp.sum(lora.merge(TREE, f)["attn"]["to_q"]["kernel"] ** 2))(
        factors
    )
    pair = slopes["attn"]["to_q"]["kernel"]
    assert np.abs(pair["up"]).max() > 0 and np.abs(pair["down"]).max() == 0  # up is zero still


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="no kernel's path matches 'nothing'"):
        lora.init(jax.random.key(0), TREE, 1, "nothing")
    with pytest.raises(ValueError, match="rank"):
        lora.init(jax.random.key(0), TREE, 0)
    factors = lora.init(jax.random.key(0), TREE, 1, "conv")
    with pytest.raises(ValueError, match="no kernel 'conv/kernel'"):
        lora.merge({"attn": TREE["attn"]}, factors)


def wide(**changes):
    """The regression's task, whose layer is one of two, both trained, over 8 inputs."""

    def loss(params, frozen, batch, key):
        x, layer = batch["x"] @ frozen["mix"]["kernel"], params["deep"]["first"]
        out = jnp.tanh(x @ layer["kernel"] + layer["bias"][None]) @ params["deep"]["last"]["kernel"]
        return jnp.mean((out - batch["y"]) ** 2), {}

    def answer(params, frozen):
        return frozen["mix"]["kernel"] @ params["deep"]["first"]["kernel"]

    rng = np.random.default_rng(0)
    kernels = {name: np.float16(rng.normal(size=(8, 8)) / 3) for name in ("first", "mix")}
    last = np.float16(rng.normal(size=(8, 1)))
    deep = {
        "first": {"kernel": np.float32(kernels["first"]), "bias": np.zeros(8, np.float32)},
        "last": {"kernel": np.float32(last)},
    }
    parts = {
        "init": lambda key: {"deep": deep},
        "frozen": {"mix": {"kernel": np.float32(kernels["mix"][:4])}},
        "loss": loss,
        "components": lambda params: params,
        "answer": answer,
        "sample": None,
    }
    return task(**{**parts, **changes})


def steps(work, cfg, count=4):
    """The state after some steps, with the transformation that a recipe's phase has."""
    tx = optim.transformation(cfg.optim)
    state, step = create(work.init(jax.random.key(0)), tx), jax.jit(make_step(work, tx, cfg))
    frozen, batches = jax.tree.map(jnp.asarray, work.frozen), work.batches(0, 0)
    for _ in range(count):
        state, metrics = step(state, frozen, next(batches), jax.random.key(1), jnp.float32(0.05))
    return state, metrics


def names(tree):
    return set(trees.flatten(tree))


def of_recipe(monkeypatch, tmp_path, **settings):
    """The task as a recipe makes it of a phase with these settings."""
    monkeypatch.setattr(recipe.lookup, "find", lambda *_, **__: lambda *_: wide())
    cfg = config(**settings)
    return recipe.make_task(cfg, {}, tmp_path), cfg


def test_a_lora_trains_no_more_than_its_factors(monkeypatch, tmp_path):
    settings = {"lora": {"rank": 2, "alpha": 4.0, "match": "first"}}
    low, cfg = of_recipe(monkeypatch, tmp_path, train=("deep",), **settings)
    whole = wide().init(None)
    state, _ = steps(low, cfg)
    pair = {"deep/first/kernel/down", "deep/first/kernel/up"}
    assert names(state.params) == names(state.ema) == pair
    # What the optimiser holds: two moments of 2 x 8 x 2 numbers, and counts.
    assert sum(x.size for x in jax.tree.leaves(state.opt) if x.ndim) == 2 * 32
    merged = low.components(state.params)["deep"]
    by_hand = whole["deep"]["first"]["kernel"] + 2.0 * (
        state.params["deep"]["first"]["kernel"]["down"]
        @ state.params["deep"]["first"]["kernel"]["up"]
    )
    np.testing.assert_allclose(merged["first"]["kernel"], by_hand, rtol=0, atol=1e-6)
    assert np.array_equal(merged["last"]["kernel"], whole["deep"]["last"]["kernel"])
    assert "moves the network's answer to fixed noise by" in low.outcome(state.params)
    with pytest.raises(InputError, match="the LoRA changes nothing"):
        low.outcome(low.init(jax.random.key(3)))


@pytest.mark.parametrize(
    "train, trained",
    [
        (("deep",), {"first/kernel", "first/bias", "last/kernel"}),
        (("deep/first",), {"first/kernel", "first/bias"}),
        (("deep/last", "deep/bias$"), {"last/kernel", "first/bias"}),
    ],
)
def test_what_is_not_named_is_frozen_bit_for_bit(monkeypatch, tmp_path, train, trained):
    part, cfg = of_recipe(monkeypatch, tmp_path, train=train)
    before = trees.flatten(wide().init(None)["deep"])
    state, _ = steps(part, cfg)
    assert names(state.params["deep"]) == trained
    size = sum(before[name].size for name in trained)
    assert sum(x.size for x in jax.tree.leaves(state.opt) if x.ndim) == 2 * size
    after = trees.flatten(part.components(state.params)["deep"])
    assert after.keys() == before.keys()
    for name, leaf in before.items():
        assert np.array_equal(after[name], leaf) == (name not in trained), name


def test_frozen_trees_in_the_stored_type_are_the_same_training(monkeypatch, tmp_path):
    ends = {}
    for dtype in chosen.DTYPES:
        made, cfg = of_recipe(monkeypatch, tmp_path, lora={"rank": 2}, frozen_dtype=dtype)
        assert {str(x.dtype) for x in jax.tree.leaves(made.frozen)} == {
            str(jnp.dtype(chosen.DTYPES[dtype]))
        }
        ends[dtype] = steps(made, cfg)[1]["loss"]
    assert ends["fp16"] == ends["fp32"] != ends["bf16"]
    with pytest.raises(InputError, match="frozen_dtype"):
        of_recipe(monkeypatch, tmp_path, frozen_dtype="fp8")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"train": ("deep/nothing",)}, "'nothing' finds nothing in 'deep'"),
        ({"lora": {"rank": 2, "match": "nothing"}}, "finds no kernel of 'deep', such as deep/"),
        ({"lora": {"rank": -1}}, "lora.rank is -1"),
    ],
)
def test_patterns_that_find_nothing_are_named(monkeypatch, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        of_recipe(monkeypatch, tmp_path, **settings)
    with pytest.raises(InputError, match="did you mean 'deep'"):
        chosen.check(("dep",), ("deep",))
    with pytest.raises(InputError, match="train: deep/"):
        chosen.check(("deep/(",), ("deep",))
