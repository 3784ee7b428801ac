"""LoRAs merged when weights are loaded: what a merge by hand gives, in the stages asked for."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mv2_jax import bundle, cascade, cli, params
from mv2_jax.convert import lora_write
from mv2_jax.errors import InputError
from mv2_jax.infer import adapt
from mv2_jax.train import lora


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A folder, and beside it LoRAs of its UNet and of I2V's motion modules."""
    root = tmp_path_factory.mktemp("adapt")
    whole = tiny.write(root / "cascade", tiny.make())
    parts, merged = {}, {}
    for name in ("spatial", "motion_i2v"):
        tree, rng = whole.load(name), np.random.default_rng(5)
        shapes = lora.init(jax.random.key(0), tree, 2, "attn")
        factors = jax.tree.map(lambda x, rng=rng: np.float32(rng.normal(size=x.shape)), shapes)
        parts[name] = (factors, tree, whole.config(name))
        merged[name] = lora.merge(tree, factors, 0.25 * 0.5, jnp.float32)
    lora_write.write(root, parts, 0.5)
    return root, whole, merged


def same(a, b):
    a, b = params.flatten(a), params.flatten(b)
    return a.keys() == b.keys() and all(np.allclose(a[k], b[k], rtol=0, atol=1e-6) for k in a)


def changed(held, *said, resident="all"):
    root, whole, _ = held
    loras = adapt.given([str(root / text) for text in said])
    return adapt.Merged(whole, loras).into(cascade.load(whole, resident=resident))


@pytest.mark.parametrize("resident", ["all", "stage"])
def test_it_is_the_merge_by_hand(held, resident):
    _, whole, merged = held
    four = changed(held, "lora.kohya.safetensors:0.5", "motion_lora.diffusers.safetensors:0.5@i2v",
                   resident=resident)  # fmt: skip
    assert same(four.parameters("t2i")["spatial"], merged["spatial"])
    assert same(four.parameters("i2v")["spatial"], merged["spatial"])
    assert same(four.parameters("i2v")["motion"], merged["motion_i2v"])
    assert same(four.parameters("v2v")["motion"], whole.load("motion_v2v"))


def test_a_stage_may_be_left_out(held):
    _, whole, merged = held
    four = changed(held, "lora.diffusers.safetensors:0.5@i2v,v2v")
    assert same(four.parameters("t2i")["spatial"], whole.load("spatial"))
    assert same(four.parameters("v2v")["spatial"], merged["spatial"])
    four = changed(held, "lora.diffusers.safetensors:0.25@t2i", "lora.kohya.safetensors:0.25")
    assert same(four.parameters("t2i")["spatial"], merged["spatial"])
    assert not same(four.parameters("i2v")["spatial"], merged["spatial"])


def test_what_fits_nothing_is_refused(held, tmp_path):
    root, whole, _ = held
    with pytest.raises(InputError, match=r"cannot read .*nowhere"):
        adapt.given(["nowhere.safetensors"])
    with pytest.raises(InputError, match="nothing known in it"):
        adapt.Merged(whole, adapt.given([str(root / "cascade" / "spatial.safetensors")]))
    with pytest.raises(InputError, match="share their spatial weights"):
        changed(held, "lora.kohya.safetensors@i2v")


def test_a_video_says_what_it_was_made_with(held, tmp_path, monkeypatch):
    root, whole, _ = held
    flags = ["--weights", str(whole.folder), "--vfi", "none"]
    names = [str(tmp_path / f"{name}.mp4") for name in ("plain", "styled", "again")]
    file = f"{root / 'lora.kohya.safetensors'}:0.5"
    assert cli.main(["generate", "a red ball", *flags, "-o", names[0]]) == 0
    assert cli.main(["generate", "a red ball", *flags, "--lora", file, "-o", names[1]]) == 0
    side = json.loads((tmp_path / "styled.json").read_text())
    assert side["loras"][0]["weight"] == 0.5 and len(side["loras"][0]["sha256"]) == 64
    assert cli.main(["generate", "--from", str(tmp_path / "styled.json"), "-o", names[2]]) == 0
    made = [json.loads((tmp_path / f"{n}.json").read_text())["result"]["frames_sha256"]
            for n in ("plain", "styled", "again")]  # fmt: skip
    assert made[0] != made[1] and made[1] == made[2]
    assert bundle.read(whole.folder).digest == side["weights"]["sha256"]
