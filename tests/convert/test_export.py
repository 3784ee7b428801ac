"""What is exported loads in PyTorch's libraries, is what came in, and converts back bit for bit."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from mv2_jax import bundle, cli
from mv2_jax.convert import assemble
from mv2_jax.params import flatten

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory):
    """A whole cascade in its sources' own type."""
    wanted = assemble.Wanted(
        unet=str(sources / "pipeline"),
        motion=str(sources / "motion"),
        image_adapter=str(sources / "adapter.safetensors"),
        image_encoder=str(sources / "vision"),
        controlnet=str(sources / "controlnet"),
        frames=4,
    )
    out = tmp_path_factory.mktemp("exported") / "cascade"
    return assemble.write(assemble.assemble(wanted), out, dtype=None, name="small")


@pytest.mark.parametrize(
    "component, library, name, folder",
    [
        ("spatial", diffusers, "UNet2DConditionModel", "pipeline/unet"),
        ("vae", diffusers, "AutoencoderKL", "pipeline/vae"),
        ("text_encoder", transformers, "CLIPTextModel", "pipeline/text_encoder"),
        ("image_encoder", transformers, "CLIPVisionModelWithProjection", "vision"),
        ("motion_i2v", diffusers, "MotionAdapter", "motion"),
        ("control", diffusers, "ControlNetModel", "controlnet"),
    ],
)
def test_the_libraries_load_it(whole, sources, tmp_path, component, library, name, folder):
    """The same class with the same numbers and settings computes the same."""
    out = tmp_path / "out"
    assert cli.main(["export", str(whole.folder), component, "-o", str(out)]) == 0
    ours = getattr(library, name).from_pretrained(out)
    theirs = getattr(library, name).from_pretrained(sources / folder)
    state = ours.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        assert torch.equal(state[key], value), key
    left_out = {"_name_or_path", "sample_size", "_diffusers_version", "transformers_version"}
    for key, value in dict(theirs.config.to_dict() if library is transformers else theirs.config
                           ).items():  # fmt: skip
        if key not in left_out and key not in _FORM:
            given = getattr(ours.config, key)
            assert given == value or _listed(given) == _listed(value), key


# Settings that are written in another form, or that only training, or no computation, reads.
_FORM = {"dtype", "projection_dim", "pad_token_id", "bos_token_id", "initializer_factor",
         "force_upcast", "architectures", "_use_default_values"}  # fmt: skip


def _listed(value):
    """One number for all levels, and the same number for each, are one setting."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values[:1] if len(set(map(str, values))) == 1 else values


def test_an_adapter_is_its_file_again(whole, sources, tmp_path):
    out = tmp_path / "a.safetensors"
    assert cli.main(["export", str(whole.folder), "image_attn", "-o", str(out)]) == 0
    ours, theirs = load_file(out), load_file(sources / "adapter.safetensors")
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        np.testing.assert_array_equal(ours[key], array)


def test_half_precision_comes_back_bit_for_bit(whole, sources, tmp_path):
    """From a cascade in half precision to diffusers' layout and into a cascade again."""
    wanted = assemble.Wanted(unet=str(sources / "pipeline" / "unet"))
    first = assemble.write(
        assemble.assemble(wanted), tmp_path / "first", dtype=np.dtype(np.float16), name="x"
    )
    assert cli.main(["export", str(first.folder), "spatial", "-o", str(tmp_path / "unet")]) == 0
    wanted = assemble.Wanted(unet=str(tmp_path / "unet"))
    again = assemble.write(assemble.assemble(wanted), tmp_path / "again", dtype=None, name="x")
    assert again.spatial == first.spatial
    assert again.config("spatial") == first.config("spatial")
    leaves = flatten(again.load("spatial"))
    assert all(leaf.dtype == np.float16 for leaf in leaves.values())


def test_what_pytorch_has_no_network_for_is_refused(whole, tmp_path, capsys):
    def refused(*arguments):
        assert cli.main(["export", *map(str, arguments), "-o", str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "has no component 'spacial'" in refused(whole.folder, "spacial")
    assert "vae: PyTorch's libraries have no network with patch_size 8" in refused(
        bundle.SHIPPED, "vae"
    )
    assert "image_attn: PyTorch's libraries have no network with depth 1" in refused(
        bundle.SHIPPED, "image_attn"
    )
    (tmp_path / "there").mkdir()
    assert cli.main(["export", str(whole.folder), "vae", "-o", str(tmp_path / "there")]) == 2
    assert "already exists" in capsys.readouterr().err


def test_everything_at_once_and_what_is_left_out(whole, tmp_path, capsys):
    out = tmp_path / "all"
    assert cli.main(["export", str(whole.folder), "-o", str(out)]) == 0
    assert "left out" not in capsys.readouterr().out
    assert {path.stem for path in out.iterdir()} == set(whole.components)
    assert (out / "image_attn.safetensors").is_file() and (out / "vae" / "config.json").is_file()
    assert cli.main(["export", str(bundle.SHIPPED), "-o", str(tmp_path / "toybox")]) == 0
    said = capsys.readouterr().out.splitlines()
    held = bundle.read(bundle.SHIPPED)
    written = {path.name for path in (tmp_path / "toybox").iterdir()}
    reasons = {line.split(":")[1].strip() for line in said if line.startswith("left out: ")}
    assert written | reasons == set(held.components) and not written & reasons
    assert {"spatial", "text_encoder", "image_encoder"} <= written
    assert {"vae", "control", "image_attn", "motion_i2v"} <= reasons
