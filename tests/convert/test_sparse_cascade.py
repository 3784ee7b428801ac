"""SparseCtrl in the ControlNet's place: converted, compared with torch, run, and given back."""

import json

import pytest

from mv2_jax import bundle, cli
from mv2_jax.config import SparseControlConfig
from mv2_jax.convert import pending
from mv2_jax.convert.checkpoint import open_checkpoint
from mv2_jax.params import flatten

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow


def convert(sources, control, out):
    given = {"unet": "pipeline", "motion": "motion", "image-adapter": "adapter.safetensors"}
    flags = [word for name, path in given.items() for word in (f"--{name}", sources / path)]
    flags += ["--image-encoder", sources / "vision", "--controlnet", control, "-o", out]
    sizes = "--t2i-size 16x16 --i2v-size 16x16 --v2v-size 16x16 --frames 3 --dtype keep".split()
    assert cli.main(["convert", *map(str, flags), *sizes]) == 0
    return bundle.read(out)


@pytest.fixture(scope="module")
def whole(small, sources, tmp_path_factory):
    root = tmp_path_factory.mktemp("sparse")
    small.sparse().save_pretrained(root / "sparse")
    return convert(sources, root / "sparse", root / "cascade"), root


def test_it_is_torchs(whole, capsys):
    made, _ = whole
    assert isinstance(made.config("control"), SparseControlConfig)
    assert made.config("control").unet.motion.norm_scope == "frame"
    capsys.readouterr()
    assert cli.main(["verify", str(made.folder), "--component", "control"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert "the same as diffusers' SparseControlNetModel (its norms over each frame)" in line
    assert float(line.split()[1]) < 5e-6


def test_the_original_layout_holds_the_same(small, whole, tmp_path):
    """AnimateDiff's own .ckpt: one state dict below "controlnet", in its names."""
    made, _ = whole
    renames = {"attn1": "attention_blocks.0", "norm1": "norms.0", "norm3": "ff_norm"}
    renames["pos_embed"] = "attention_blocks.0.pos_encoder"
    state = {}
    for name, value in small.sparse().state_dict().items():
        place, split, rest = name.partition(".motion_modules.")
        if split:
            for ours, theirs in renames.items():
                rest = rest.replace(f".{ours}.", f".{theirs}.")
            number, _, rest = rest.partition(".")
            rest = f"{number}.temporal_transformer.{rest}"
        state["module." + place + split + rest] = value
    torch.save({"controlnet": state, "epoch": 3}, tmp_path / "x.ckpt")
    network = pending.plain(open_checkpoint(str(tmp_path / "x.ckpt")).one("sparse_control"))
    ours = dict(network.pending().make())
    theirs = flatten(made.load("control"))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_it_goes_back_bit_for_bit(small, whole, tmp_path, capsys):
    made, _ = whole
    assert cli.main(["export", str(made.folder), "control", "-o", str(tmp_path / "back")]) == 0
    assert "these weights want norms over each frame" in capsys.readouterr().out
    ours = diffusers.SparseControlNetModel.from_pretrained(tmp_path / "back").state_dict()
    theirs = small.sparse().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_it_steers_a_video(whole, tmp_path, capsys):
    from PIL import Image

    made, _ = whole
    Image.new("RGB", (16, 16), "teal").save(tmp_path / "i.png")
    steps = "--i2v-steps 1 --v2v-steps 1 --between 1".split()
    words = ["a cat", "--weights", str(made.folder), "--image", str(tmp_path / "i.png"), *steps]
    out = tmp_path / "v.mp4"
    assert cli.main(["generate", *words, "-o", str(out)]) == 0
    assert json.loads(out.with_suffix(".json").read_text())["result"]["frames"] == 5
    capsys.readouterr()
    assert cli.main(["generate", *words, "--frames", "12", "-o", str(tmp_path / "w.mp4")]) == 2
    assert (
        "SparseCtrl knows no more than the 8 frames of one motion window" in capsys.readouterr().err
    )
