"""Checkpoints as model sites distribute them, one file in LDM's and OpenCLIP's names, beside torch.

`mv2 verify` fills the reference through diffusers' own converters of such files.
"""

import numpy as np
import pytest

from mv2_jax import bundle, cli
from mv2_jax.convert import ldm
from mv2_jax.params import flatten

torch = pytest.importorskip("torch")
load_file = pytest.importorskip("safetensors.torch").load_file
pytest.importorskip("diffusers")

pytestmark = pytest.mark.slow

PICTURE = ("t2i_unet", "t2i_vae", "t2i_text_encoder", "t2i_text_encoder_2")


def save(state, path):
    from safetensors.torch import save_file

    save_file({name: value.clone().contiguous() for name, value in state.items()}, path)


def convert(folder, *arguments):
    assert cli.main(["convert", *map(str, arguments), "-o", str(folder), "--dtype", "keep"]) == 0
    return bundle.read(folder)


@pytest.fixture(scope="module")
def single(small, sources, tmp_path_factory):
    """Cascades with SDXL from one file and from a pipeline's folder, and its torch modules."""
    root = tmp_path_factory.mktemp("sdxl")
    parts = small.sdxl()
    state = small.sdxl_file(parts, small.as_ldm, ldm.unet_modules(2, 1))
    # What the published file holds beside the weights.
    inner = "conditioner.embedders."
    state[f"{inner}0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state[f"{inner}1.model.logit_scale"] = torch.ones(())
    state["denoiser.sigmas"] = torch.ones(9)
    save(state, root / "anything.safetensors")
    for name, module in parts.items():
        module.save_pretrained(root / "pipeline" / name)
    first = ["--unet", sources / "pipeline", "--t2i"]
    one = convert(root / "one", *first, root / "anything.safetensors")
    return one, convert(root / "many", *first, root / "pipeline"), parts


def test_sdxl_in_one_file_is_its_pipeline(single):
    one, many, _ = single
    for name in PICTURE:
        if name != "t2i_vae":  # one file's VAE is SDXL's by its neighbour, a folder's by config
            assert one.config(name) == many.config(name)
        theirs = flatten(many.load(name))
        for leaf, array in flatten(one.load(name)).items():
            np.testing.assert_array_equal(array, theirs[leaf], err_msg=f"{name}: {leaf}")
    assert one.config("t2i_vae").scaling_factor == 0.13025
    assert one.stages["t2i"].size == (1024, 1024)  # SDXL's own, whatever the video stages take


def test_sdxls_vae_can_be_another(small, single, sources, tmp_path, capsys):
    """A bare file does not say that it is SDXL's; where it stands does."""
    save(small.vae(12).state_dict(), tmp_path / "fixed.safetensors")
    pipeline = single[1].folder.parent / "pipeline"
    given = ["--unet", sources / "pipeline", "--t2i-vae", tmp_path / "fixed.safetensors"]
    made = convert(tmp_path / "c", *given, "--t2i", pipeline)
    assert made.config("t2i_vae").scaling_factor == 0.13025
    assert made.config("vae").scaling_factor == 0.18215
    assert "a VAE (latents scaled by 0.13025)" in capsys.readouterr().out
    verified(capsys, made.folder, "t2i_vae")
    assert cli.main(["convert", *map(str, given), "-o", str(tmp_path / "d")]) == 2
    assert "--t2i-vae goes with --t2i" in capsys.readouterr().err


def verified(capsys, folder, *names):
    """The largest error of each component by `mv2 verify`."""
    capsys.readouterr()
    flags = [word for name in names for word in ("--component", name)]
    assert cli.main(["verify", str(folder), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == len(names) and all("the same as" in line for line in lines)
    return [float(line.split()[1]) for line in lines]


def test_sdxl_in_one_file_is_torchs(single, capsys):
    errors = verified(capsys, single[0].folder, *PICTURE)
    assert max(errors) < 3e-6  # measured: 1.4e-6


def test_sdxl_goes_back_bit_for_bit(single, tmp_path):
    one, _, parts = single
    for name, module in zip(PICTURE, ("unet", "vae", "text_encoder", "text_encoder_2")):
        assert cli.main(["export", str(one.folder), name, "-o", str(tmp_path / name)]) == 0
        theirs, ours = parts[module], type(parts[module]).from_pretrained(tmp_path / name)
        state = ours.state_dict()
        assert state.keys() == theirs.state_dict().keys()
        for key, value in theirs.state_dict().items():
            assert torch.equal(state[key], value), key


def test_a_plain_adapter_is_torchs_and_its_file_again(small, sources, tmp_path, capsys):
    """IP-Adapter's one linear layer, as a file of safetensors and as the pickle it came as."""
    rng = np.random.default_rng(0)
    state = {k: torch.from_numpy(v) for k, v in small.adapter().items() if "ip_adapter" in k}
    for name, shape in (("proj.weight", (128, 24)), ("proj.bias", 128)):
        made = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
        state[f"image_proj.{name}"] = 0.2 * made
    state["image_proj.norm.weight"], state["image_proj.norm.bias"] = torch.ones(32), torch.ones(32)
    save(state, tmp_path / "a.safetensors")
    halves = {"image_proj": {}, "ip_adapter": {}}
    for name, value in state.items():
        half, _, rest = name.partition(".")
        halves[half][rest] = value
    torch.save(halves, tmp_path / "a.bin")
    first = ["--unet", sources / "pipeline", "--image-encoder", sources / "vision"]
    made = [
        convert(tmp_path / kind, *first, "--image-adapter", tmp_path / f"a.{kind}")
        for kind in ("safetensors", "bin")
    ]
    first, second = (flatten(one.load("image_attn")) for one in made)
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    assert max(verified(capsys, made[0].folder, "image_attn")) < 3e-6  # measured: 1.1e-6
    back = tmp_path / "back.safetensors"
    assert cli.main(["export", str(made[0].folder), "image_attn", "-o", str(back)]) == 0
    again = load_file(back)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_a_full_face_adapter_is_torchs_and_its_file_again(small, sources, tmp_path, capsys):
    """Two linear layers over every state of the vision encoder, and a norm."""
    rng = np.random.default_rng(0)
    state = {k: torch.from_numpy(v) for k, v in small.adapter().items() if "ip_adapter" in k}
    shapes = {"0.weight": (48, 48), "0.bias": 48, "2.weight": (32, 48), "2.bias": 32}
    for name, shape in {**shapes, "3.weight": 32, "3.bias": 32}.items():
        made = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
        state[f"image_proj.proj.{name}"] = 0.2 * made
    save(state, tmp_path / "face.safetensors")
    flags = ["--unet", sources / "pipeline", "--image-encoder", sources / "vision"]
    made = convert(tmp_path / "made", *flags, "--image-adapter", tmp_path / "face.safetensors")
    assert "an IP-Adapter full-face (all tokens of width 32)" in capsys.readouterr().out
    assert max(verified(capsys, made.folder, "image_attn")) < 3e-6  # measured: 1e-6
    back = tmp_path / "back.safetensors"
    assert cli.main(["export", str(made.folder), "image_attn", "-o", str(back)]) == 0
    again = load_file(back)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_open_clips_vision_encoder_is_torchs(small, sources, tmp_path, capsys):
    """Of ViT-H's width, since that says the heads; beside the text tower, which no slot wants."""
    vision = small.as_open_clip(small.vision(width=1280, heads=16).state_dict())
    whole = {f"visual.{name}": value for name, value in vision.items()}
    whole |= small.as_open_clip(small.text(width=64, projection=24).state_dict())
    save(whole, tmp_path / "open_clip.safetensors")
    encoder = ["--image-encoder", tmp_path / "open_clip.safetensors"]
    convert(tmp_path / "c", "--unet", sources / "pipeline", *encoder)
    assert max(verified(capsys, tmp_path / "c", "image_encoder")) < 3e-6
