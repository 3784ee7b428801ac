"""A Control-LoRA and the UNet beside it are the ControlNet that diffusers makes of the two."""

import pytest
from converting import convert, refused
from safetensors.torch import load_file, save_file

from mv2_jax import bundle, cli

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
RANK = 3


def as_file(net, unet, small):
    """(the file, the ControlNet's tensors): `net` as what its LoRA makes of `unet`."""
    from mv2_jax.convert import ldm

    state, base = net.state_dict(), unet.state_dict()
    rng, whole, held = torch.Generator().manual_seed(3), {}, {}
    for name, value in state.items():
        whole[name] = value
        own = name.startswith("controlnet_")
        if own or not name.endswith(".weight") or value.ndim < 2:
            # Norms, biases and what a UNet has none of are whole; a few layers are the UNet's own.
            if own or "norm" not in name:
                held[name] = value
            else:
                whole[name] = base[name]
            continue
        if name.startswith("time_embedding.linear_2"):
            whole[name] = base[name]
            continue
        rows, columns = value.shape[0], value[0].numel()
        up = torch.randn(rows, RANK, generator=rng) / 8
        down = torch.randn(RANK, columns, generator=rng) / 8
        whole[name] = base[name] + (up @ down).reshape(value.shape)
        if value.ndim == 4:
            up, down = up[:, :, None, None], down.reshape(RANK, *value.shape[1:])
        held |= {name.removesuffix("weight") + half: x for half, x in (("up", up), ("down", down))}
    modules = ldm.unet_modules(2, 1)
    modules |= {f"zero_convs.{n}.0": f"controlnet_down_blocks.{n}" for n in range(4)}
    embedding = "controlnet_cond_embedding"
    modules |= {
        "middle_block_out.0": "controlnet_mid_block",
        "input_hint_block.0": f"{embedding}.conv_in",
        "input_hint_block.2": f"{embedding}.blocks.0",
        "input_hint_block.4": f"{embedding}.blocks.1",
        "input_hint_block.6": f"{embedding}.conv_out",
    }
    file = small.as_ldm(held, modules)
    return {**file, "lora_controlnet": torch.tensor([])}, whole


@pytest.fixture(scope="module")
def made(sources, small, tmp_path_factory):
    root = tmp_path_factory.mktemp("control-lora")
    unet = diffusers.UNet2DConditionModel.from_pretrained(sources / "pipeline" / "unet")
    file, whole = as_file(small.controlnet(seed=21), unet, small)
    save_file(file, root / "lora.safetensors")
    flags = ["--unet", sources / "pipeline", "--controlnet", root / "lora.safetensors"]
    assert convert(*flags, "-o", root / "made") == 0
    return root, whole


def test_it_is_the_controlnet_of_the_merge(made, small, capsys):
    root, whole = made
    assert bundle.read(root / "made").config("control").unet.channels == (64, 128)
    assert cli.main(["export", str(root / "made"), "control", "-o", str(root / "back")]) == 0
    net = diffusers.ControlNetModel.from_pretrained(root / "back")
    for name, value in net.state_dict().items():
        expected = whole[name].half().float()  # as it is stored
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6, msg=name)
    assert cli.main(["verify", str(root / "made"), "--component", "control"]) == 0
    assert "the same as diffusers' ControlNetModel" in capsys.readouterr().out


def test_it_says_what_it_is(made, capsys):
    assert cli.main(["convert", str(made[0] / "lora.safetensors")]) == 0
    said = capsys.readouterr().out
    assert f"a Control-LoRA (rank {RANK})" in said and "for --controlnet" in said


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda held: held | {"output_blocks.0.0.in_layers.2.up": torch.ones(8, 3)}, "no such"),
        (lambda held: {n: v for n, v in held.items() if n != "time_embed.0.down"}, "beside it"),
        (lambda held: held | {"time_embed.0.up": torch.ones(7, 3)}, "of another size"),
        (lambda held: held | {"time_embed.0.bias": torch.ones(7)}, "of another size"),
    ],
    ids=["layer", "half", "factor", "bias"],
)
def test_what_does_not_fit_its_unet_is_said(made, sources, tmp_path, change, text, capsys):
    save_file(change(load_file(made[0] / "lora.safetensors")), tmp_path / "lora.safetensors")
    flags = ("--unet", sources / "pipeline", "-o", tmp_path / "out", "--controlnet")
    assert text in refused(capsys, *flags, tmp_path / "lora.safetensors")
