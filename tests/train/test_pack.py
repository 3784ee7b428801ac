import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import bundle
from mv2_jax.config import GANVFIConfig, to_dict
from mv2_jax.configs import smoke
from mv2_jax.errors import InputError
from mv2_jax.train import loop, pack, recipe
from mv2_jax.train.phase import packing
from mv2_jax.train.state import State
from mv2_jax.train.task import Component

CONFIGS = {
    "vae": smoke.VAE,
    "text_encoder": smoke.TEXT,
    "spatial": smoke.SPATIAL,
    "motion_i2v": smoke.MOTION,
    "motion_v2v": smoke.MOTION,
    "image_encoder": smoke.VISION,
    "image_attn": smoke.PROJECTION,
    "control": smoke.CONTROL,
}


@dataclass
class Finished:
    """As much of a task as write_weights asks for."""

    names: tuple
    notes: dict
    outcome = files = None

    def components(self, params):
        return {name: params for name in self.names}

    def configs(self, params):
        return {name: CONFIGS[name] for name in self.names}


def write(root, phase, names, begin=None, value=1.0, tree=None, **notes):
    tree = tree or {"layer": {"kernel": np.full((2, 2), value, np.float32)}}
    outcome = loop.Outcome(State(jnp.int32(3), {}, tree, ()), True, 1.0, 2.0)
    cfg = smoke.get_config().phases.vae
    cfg.name = phase
    folder = root / phase / "weights"
    recipe.write_weights(folder, Finished(names, notes), outcome, cfg, begin or {})
    return recipe.components_in(folder)


@pytest.fixture
def runs(tmp_path):
    """Weights of the four recipes, as finished phases leave them."""
    stages = {name: to_dict(smoke.NETWORKS[name]) for name in ("t2i", "i2v", "v2v")}
    held = write(tmp_path, "vae/vae", ("vae",))
    held |= write(
        tmp_path,
        "t2i/t2i",
        ("text_encoder", "spatial"),
        held,
        value=0.123,
        stages={"t2i": stages["t2i"]},
        tokenizer={"class": "WordTokenizer", "words": ["a"], "max_length": 5},
    )
    names = ("motion_i2v", "image_encoder", "image_attn", "control")
    held |= write(tmp_path, "i2v/i2v", names, held, stages={"i2v": stages["i2v"]})
    write(tmp_path, "v2v/v2v", ("motion_v2v",), held, stages={"v2v": stages["v2v"]})
    return tmp_path


SOURCES = ("vae", "t2i", "i2v", "v2v")


def test_phases_make_a_cascade_folder(runs):
    cfg = packing(sources=SOURCES, name="tiny", defaults={"t2i": {"guidance": 3.0}})
    packed = pack.pack(runs, "pack", cfg, ())
    assert packed.folder == runs / "pack" / "cascade"
    read = bundle.read(packed.folder)
    assert set(read.components) == set(CONFIGS) and read.name == "tiny"
    assert {name: read.config(name) for name in CONFIGS} == CONFIGS
    assert read.stages["i2v"] == smoke.NETWORKS["i2v"].ruled(None, "apart")  # which it names
    assert read.defaults["t2i"] == {"guidance": 3.0} and read.tokenizer["words"] == ["a"]
    assert read.components["control"].over == read.spatial is not None
    assert read.components["motion_v2v"].source == "mv2 train v2v"
    assert jax.tree.leaves(read.load("spatial"))[0].dtype == np.float16
    pack.pack(runs, "pack", cfg, ())  # a folder of ours may be replaced


def test_a_text_encoder_of_the_video_stages_leaves_t2i_its_own(runs):
    names = ("text_encoder", "motion_i2v", "image_encoder", "image_attn", "control")
    began = recipe.components_in(runs / "t2i" / "t2i" / "weights")
    stages = {"i2v": to_dict(smoke.NETWORKS["i2v"])}
    write(runs, "i2v/words", names, began, value=0.7, stages=stages)
    for sources in (("vae", "t2i", "i2v/words", "v2v"), ("vae", "i2v/words", "v2v", "t2i")):
        packed = pack.pack(runs, "pack", packing(sources=sources), ())
        held = {
            name: float(jax.tree.leaves(packed.load(name))[0][0, 0])
            for name in ("text_encoder", "t2i_text_encoder")
        }
        assert held == pytest.approx({"text_encoder": 0.7, "t2i_text_encoder": 0.123}, abs=1e-3)
    # A phase that begins from the folder takes the one of its stage.
    made = smoke.get_config()
    for phase, value in (("t2i", 0.123), ("i2v", 0.7)):
        made.phases[phase].begin = {"text_encoder": str(packed.folder)}
        made.chain = False
        begin = recipe.begin_from(runs, "smoke", made, phase)
        leaf = jax.tree.leaves(begin["text_encoder"].params)[0]
        assert float(leaf[0, 0]) == pytest.approx(value, abs=1e-3)


def test_spatial_weights_of_the_video_stages_leave_t2i_its_own(runs):
    began = recipe.components_in(runs / "i2v" / "i2v" / "weights")
    began |= recipe.components_in(runs / "t2i" / "t2i" / "weights")
    names = ("text_encoder", "spatial", "motion_i2v", "image_encoder", "image_attn", "control")
    stages = {"i2v": to_dict(smoke.NETWORKS["i2v"])}
    held = write(runs, "i2v/turning", names, began, value=0.7, stages=stages)
    cfg = packing(sources=("vae", "t2i", "i2v/turning", "v2v"))
    with pytest.raises(InputError, match=r"motion_v2v.*was trained over other spatial weights"):
        pack.pack(runs, "pack", cfg, ())
    write(runs, "v2v/v2v", ("motion_v2v",), held, stages={"v2v": to_dict(smoke.NETWORKS["v2v"])})
    packed = pack.pack(runs, "pack", cfg, ())
    for name, value in (("spatial", 0.7), ("t2i_unet", 0.123)):
        leaf = jax.tree.leaves(packed.load(name))[0]
        assert float(leaf[0, 0]) == pytest.approx(value, abs=1e-3)
    assert packed.components["control"].over == packed.spatial
    # A phase of T2I that begins from the folder goes on from T2I's own.
    made = smoke.get_config()
    for phase, value in (("t2i", 0.123), ("i2v", 0.7)):
        made.phases[phase].begin = {"spatial": str(packed.folder)}
        made.chain = False
        leaf = jax.tree.leaves(recipe.begin_from(runs, "s", made, phase)["spatial"].params)[0]
        assert float(leaf[0, 0]) == pytest.approx(value, abs=1e-3)


def test_a_gan_interpolator_is_packed_without_its_light_model(runs, monkeypatch):
    monkeypatch.setitem(CONFIGS, "vfi_gan", GANVFIConfig())
    halves = {name: {"w": np.ones(2, np.float32)} for name in ("light", "gan")}
    write(runs, "vfi/vfi", ("vfi_gan",), tree=halves)
    packed = pack.pack(runs, "pack", packing(sources=(*SOURCES, "vfi")), ())
    assert packed.config("vfi_gan") == GANVFIConfig() and set(packed.load("vfi_gan")) == {"gan"}


def test_parts_trained_over_other_spatial_weights_are_refused(runs):
    held = recipe.components_in(runs / "vae" / "vae" / "weights")
    notes = json.loads((runs / "t2i" / "t2i" / "weights" / recipe.INDEX).read_text())
    write(
        runs,
        "t2i/t2i",
        ("text_encoder", "spatial"),
        held,
        value=0.5,
        stages=notes["stages"],
        tokenizer=notes["tokenizer"],
    )
    with pytest.raises(InputError, match="was trained over other spatial weights"):
        pack.pack(runs, "pack", packing(sources=SOURCES), ())
    assert not (runs / "pack" / "cascade").exists()


def test_what_is_missing_is_named(runs):
    with pytest.raises(InputError, match=r"lack motion_v2v, stage v2v"):
        pack.pack(runs, "pack", packing(sources=SOURCES[:3]), ())
    with pytest.raises(InputError, match="has not finished"):
        pack.pack(runs, "pack", packing(sources=("judge",)), ())
    assert isinstance(held := recipe.components_in(runs / "vae" / "vae" / "weights"), dict)
    assert isinstance(held["vae"], Component)


def test_a_cascade_folder_is_a_source_and_phases_replace_parts_of_it(runs):
    numbers = {"t2i": {"guidance": 3.0}, "i2v": {"guidance": 2.0, "steps": 3}}
    first = pack.pack(runs, "pack", packing(sources=SOURCES, defaults=numbers), ())
    held = recipe.components_in(runs / "i2v" / "i2v" / "weights")
    began = {"spatial": recipe.components_in(runs / "t2i" / "t2i" / "weights")["spatial"]}
    write(runs, "more/i2v", ("motion_i2v",), began, value=2.0)
    cfg = packing(sources=(str(first.folder), "more"), defaults={"i2v": {"guidance": 5.0}})
    again = pack.pack(runs, "again", cfg, ())
    assert again.components.keys() == first.components.keys()
    for name, part in again.components.items():
        same = part.sha256 == first.components[name].sha256
        assert same == (name != "motion_i2v") and part.config == first.config(name)
        assert part.over == first.components[name].over
    assert again.load("motion_i2v")["layer"]["kernel"][0, 0] == 2
    assert held["motion_i2v"].params["layer"]["kernel"][0, 0] == 1
    assert again.stages == first.stages and again.tokenizer == first.tokenizer
    assert again.defaults == {"t2i": {"guidance": 3.0}, "i2v": {"guidance": 5.0, "steps": 3}}
