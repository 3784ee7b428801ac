"""LoRAs of every naming change the weights that a merge by hand changes, by as much."""

import json
import re

import numpy as np
import pytest

from mv2_jax.config import MotionConfig, UNetConfig
from mv2_jax.convert import ldm, lora_layers, lora_read, param_shapes
from mv2_jax.convert.engine import exported
from mv2_jax.convert.tables import unet as unet_table
from mv2_jax.errors import InputError
from mv2_jax.params import flatten

CFG = UNetConfig(
    channels=(32, 64), layers_per_block=1, transformers=(1, 0), heads=(8, 8), context_width=32
)
TREE = param_shapes.unet(CFG)["spatial"]
RANK, ALPHA, WEIGHT = 3, 6.0, 0.7
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0"


def leaf(module):
    """The leaf of a module's weight, found by the UNet's own table."""
    return exported(flatten(TREE), unet_table.rules(CFG))[f"{module}.weight"][1][0]


def halves(seed, shape=(32, 32)):
    rng = np.random.default_rng(seed)
    down, up = rng.normal(size=(RANK, shape[1])), rng.normal(size=(shape[0], RANK))
    return down.astype(np.float32), up.astype(np.float32)


class WithMetadata(dict):
    @property
    def metadata(self):
        return {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": ALPHA, "unet.r": RANK})}


def old(module):
    stem, _, last = module.removesuffix(".0").rpartition(".")
    return f"{stem}.processor.{last}_lora"


def spellings():
    """The same two products as every program writes them, and the scale that they carry."""
    sgm = {
        Q: "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
        OUT: "output_blocks_3_1_transformer_blocks_0_attn2_to_out_0",
    }
    alpha = np.float32(ALPHA)

    def write(name, keys, tail, cls=dict):
        source = cls()
        for seed, module in enumerate((Q, OUT)):
            down, up = halves(seed)
            stem = name(module)
            source[f"{stem}{keys[0]}.weight"], source[f"{stem}{keys[1]}.weight"] = down, up
            if tail:
                source[f"{stem}.alpha"] = alpha
        return source

    kohya, peft = (".lora_down", ".lora_up"), (".lora_A", ".lora_B")
    return {
        "kohya": (write(lambda m: f"lora_unet_{m.replace('.', '_')}", kohya, True), ALPHA / RANK),
        "kohya-ldm": (write(lambda m: f"lora_unet_{sgm[m]}", kohya, True), ALPHA / RANK),
        "peft": (write(lambda m: f"unet.{m}", peft, False), 1.0),
        "peft-base": (write(lambda m: f"base_model.model.{m}", peft, False), 1.0),
        "metadata": (write(lambda m: f"unet.{m}", peft, False, WithMetadata), ALPHA / RANK),
        "diffusers": (write(lambda m: f"unet.{m}", (".lora.down", ".lora.up"), False), 1.0),
        "processor": (write(old, (".down", ".up"), False), 1.0),
        "lycoris": (write(lambda m: f"lycoris_{m.replace('.', '_')}", kohya, True), ALPHA / RANK),
        "lcm-script": (write(lambda m: f"unet.base_model.model.{m}", peft, False), 1.0),
        "comfy": (write(lambda m: f"diffusion_model.{m}", kohya, True), ALPHA / RANK),
        "default_0": (
            write(lambda m: f"unet.{m}", (".lora_A.default_0", ".lora_B.default_0"), False),
            1.0,
        ),
    }


@pytest.mark.parametrize("spelling", spellings())
def test_every_spelling_is_the_merge_by_hand(spelling):
    source, scale = spellings()[spelling]
    assert lora_read.is_lora(source)
    changes = lora_layers.fit(
        lora_read.products(source, {}), {"unet": lora_layers.Layers.of_unet(CFG, TREE)}, WEIGHT
    )["unet"]
    assert changes.keys() == {leaf(Q), leaf(OUT)}
    base = np.random.default_rng(9).normal(size=(32, 32)).astype(np.float32)
    merged = dict(lora_layers.changed([(leaf(Q), base), (leaf(OUT), base), ("x", base)], changes))
    np.testing.assert_array_equal(merged["x"], base)
    for seed, module in enumerate((Q, OUT)):
        down, up = (part.astype(np.float64) for part in halves(seed))
        # A kernel is the transposed weight.
        expected = base + WEIGHT * scale * (up @ down).T
        np.testing.assert_allclose(merged[leaf(module)], expected, rtol=0, atol=3e-6)


def test_kohyas_names_mean_what_diffusers_says():
    conversion = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    import torch

    layers = lora_layers.Layers.of_unet(CFG, TREE)
    table = exported(flatten(TREE), unet_table.rules(CFG))
    attention = [k.removesuffix(".weight") for k in table if ".attn" in k and k.endswith("weight")]
    assert len(attention) == 32  # four transformers of two attentions of four layers
    for module in attention:
        name = f"lora_unet_{module.replace('.', '_')}"
        file = {f"{name}.lora_down.weight": torch.ones(1, 2), f"{name}.alpha": torch.tensor(1.0)}
        file[f"{name}.lora_up.weight"] = torch.ones(2, 1)
        theirs, _ = conversion._convert_non_diffusers_lora_to_diffusers(file)
        said = re.match(r"unet\.(.+)\.processor\.(to_\w+)_lora\.", next(iter(theirs)))
        assert f"{said[1]}.{said[2]}" == module.removesuffix(".0")
        assert layers.find(module.replace(".", "_")).leaf == leaf(module)


def test_every_layer_is_found_by_its_ldm_name():
    layers = lora_layers.Layers.of_unet(CFG, TREE)
    modules = ldm.unet_modules(2, 1)
    for old_name, new in modules.items():
        kernel = layers.places.get(new.replace(".", "_"))
        if kernel is not None:
            assert layers.find(old_name.replace(".", "_")) == kernel


def test_convolutions():
    """LoCon with and without a middle, and a plain pair on a 1x1 convolution."""
    rng = np.random.default_rng(0)
    conv, point = "down_blocks.0.resnets.0.conv1", "down_blocks.0.attentions.0.proj_in"
    down = rng.normal(size=(RANK, 32, 3, 3)).astype(np.float32)
    up = rng.normal(size=(32, RANK, 1, 1)).astype(np.float32)
    thin = rng.normal(size=(RANK, 32, 1, 1)).astype(np.float32)
    mid = rng.normal(size=(RANK, RANK, 3, 3)).astype(np.float32)

    def change(module, **parts):
        name = f"lora_unet_{module.replace('.', '_')}"
        source = {f"{name}.lora_{part}.weight": value for part, value in parts.items()}
        layers = {"unet": lora_layers.Layers.of_unet(CFG, TREE)}
        found = lora_layers.fit(lora_read.products(source, {}), layers)["unet"][leaf(module)]
        return found[0].added(np.zeros(flatten(TREE)[leaf(module)].shape, np.float32))

    expected = np.einsum("orxy,rihw->hwio", up.astype(np.float64), down)
    np.testing.assert_allclose(change(conv, down=down, up=up), expected, rtol=0, atol=5e-6)
    # Three convolutions one after another are one: what goes in, through the middle, out.
    expected = np.einsum("op,prhw,ri->hwio", up[..., 0, 0].astype(np.float64), mid, thin[..., 0, 0])
    got = change(conv, down=thin, up=up, mid=mid)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)
    got = change(point, down=thin, up=up)
    expected = (up[..., 0, 0].astype(np.float64) @ thin[..., 0, 0]).T
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


def test_motion_loras_in_both_namings():
    cfg = MotionConfig(max_frames=8)
    tree = param_shapes.unet(UNetConfig(**{**vars(CFG), "motion": cfg}))["motion"]
    layers = {"unet": lora_layers.Layers.of_motion(cfg, tree)}
    place = "down_blocks.0.motion_modules.0"
    block = "temporal_transformer.transformer_blocks.0.attention_blocks.1.processor"
    names = (
        f"{place}.{block}.to_k_lora.{{}}.weight",
        f"unet.{place}.transformer_blocks.0.attn2.processor.to_k_lora.{{}}.weight",
    )
    down, up = halves(0)
    for name in names:
        source = {name.format("down"): down, name.format("up"): up}
        changes = lora_layers.fit(lora_read.products(source, {}), layers)["unet"]
        wanted = "down_blocks_0/motion_modules_0/transformer_blocks_0/attn2/attn/to_k/kernel"
        assert list(changes) == [wanted]


def test_text_encoders_are_kept_apart():
    down, up = halves(0)
    names = {"lora_te1_text_model_encoder_layers_0_mlp_fc1": "text"}
    names["lora_te2_text_model_encoder_layers_0_mlp_fc1"] = "text_2"
    names["text_encoder_2.text_model.encoder.layers.0.mlp.fc1"] = "text_2"
    names["lora_te_text_model_encoder_layers_0_mlp_fc1"] = "text"
    from mv2_jax.config import TextConfig

    cfg = TextConfig(vocab_size=9, max_length=7, width=32, layers=1, heads=1, mlp_width=32)
    layers = lora_layers.Layers.of_text(param_shapes.text(cfg))
    for name, model in names.items():
        source = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        networks = {"text": layers, "text_2": layers}
        assert list(lora_layers.fit(lora_read.products(source, {}), networks)) == [model]


@pytest.mark.parametrize(
    "change, text",
    [
        ({"lora_unet_x.oft_blocks": 1}, "this is an OFT"),
        ({"lora_unet_x.on_input": 1}, r"this is an \(IA\)\^3"),
        ({"lora_unet_x.diff": 1}, "this is a file of whole differences"),
        ({"lora_unet_x.hada_w1_a": 1}, "halves of a product alone: lora_unet_x"),
        ({"lora_unet_x.lora_down.weight": 1}, "halves of a product alone: lora_unet_x"),
        ({"mystery": 1}, "tensors that no LoRA has.*mystery"),
    ],
)
def test_other_methods_and_halves_are_refused(change, text):
    source = {**spellings()["kohya"][0], **{k: np.ones((2, 2), np.float32) for k in change}}
    with pytest.raises(InputError, match=text):
        lora_read.products(source, {})


def test_what_has_no_place_is_refused_whole():
    layers = {"unet": lora_layers.Layers.of_unet(CFG, TREE)}
    down, up = halves(0)
    source, _ = spellings()["kohya"]
    far = {"lora_unet_far_away.lora_down.weight": down, "lora_unet_far_away.lora_up.weight": up}
    with pytest.raises(InputError, match="no such layer: lora_unet_far_away"):
        lora_layers.fit(lora_read.products({**source, **far}, {}), layers)
    wide = {f"unet.{Q}.lora_A.weight": halves(0, (32, 64))[0], f"unet.{Q}.lora_B.weight": up}
    with pytest.raises(InputError, match=r"another size: unet.down_blocks"):
        lora_layers.fit(lora_read.products(wide, {}), layers)
    down[0, 0] = np.nan
    bad = {f"unet.{Q}.lora_A.weight": down, f"unet.{Q}.lora_B.weight": up}
    (change,) = lora_layers.fit(lora_read.products(bad, {}), layers)["unet"][leaf(Q)]
    with pytest.raises(InputError, match="not finite"):
        change.added(np.zeros((32, 32), np.float32))


@pytest.mark.parametrize("alpha", [None, ALPHA])
@pytest.mark.parametrize("spelling", ["kohya", "peft", "processor"])
def test_what_verify_merges_is_what_peft_merges(spelling, alpha, tmp_path):
    """`mv2 verify`'s own arithmetic beside diffusers' reading of a file and PEFT's merging."""
    pytest.importorskip("peft"), pytest.importorskip("diffusers")
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from safetensors.torch import save_file

    from mv2_jax.convert import reference_lora

    made = UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
    )
    before = {name: value.clone() for name, value in made.state_dict().items()}
    source = {k: torch.from_numpy(np.array(v)) for k, v in spellings()[spelling][0].items()}
    if spelling == "kohya" and alpha is None:
        source = {k: v for k, v in source.items() if not k.endswith("alpha")}
    told = None
    if spelling == "peft" and alpha:
        settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": [Q, OUT]}
        settings = {f"unet.{key}": value for key, value in settings.items()}
        told = {"lora_adapter_metadata": json.dumps(settings), "format": "pt"}
    path = tmp_path / "lora.safetensors"
    save_file({k: v.contiguous() for k, v in source.items()}, path, told)
    read = StableDiffusionLoraLoaderMixin.lora_state_dict
    state, alphas, metadata = read(str(path), return_lora_metadata=True)
    prefixed = {k if k.startswith("unet.") else f"unet.{k}": v for k, v in state.items()}
    how = {"network_alphas": alphas, "metadata": metadata}
    made.load_lora_adapter(prefixed, prefix="unet", adapter_name="a", **how)
    made.set_adapters("a", WEIGHT)
    made.fuse_lora()
    made.unload_lora()
    ours = dict(before)
    reference_lora.merge(ours, str(path), WEIGHT, ("lora_unet_", "unet."))
    changed = 0
    for name, value in made.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-5)
        changed += not torch.equal(value, before[name])
    assert changed == 2


def in_peft(method, kind):
    """A layer that PEFT changed: (before, after, the file that says so in LyCORIS' names)."""
    peft = pytest.importorskip("peft")
    import torch

    made = torch.nn.ModuleDict({"q": torch.nn.Linear(12, 8)})
    if kind == "conv":
        made = torch.nn.ModuleDict({"q": torch.nn.Conv2d(6, 8, 3)})
    before = made["q"].weight.detach().clone()
    configs = {
        "loha": peft.LoHaConfig(r=3, alpha=6, target_modules=["q"]),
        "lokr": peft.LoKrConfig(r=1, alpha=6, target_modules=["q"], decompose_both=True),
        "dora": peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q"], use_dora=True),
    }
    model = peft.get_peft_model(made, configs[method])
    torch.manual_seed(0)
    file = {"unet.q.alpha": torch.tensor(6.0)}
    for name, value in model.named_parameters():
        if value.requires_grad:
            noise = 0.3 * torch.randn_like(value)
            value.data = value + noise if "magnitude" in name else noise
            part = name.removeprefix("base_model.model.q.").removesuffix(".default")
            file[f"unet.q.{part.replace('.default', '')}"] = value.data
    after = model.merge_and_unload()["q"].weight.detach()
    return before, after, file


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("method", ["loha", "lokr", "dora"])
def test_lohas_lokrs_and_doras_are_merged_as_peft_merges_them(method, kind, tmp_path):
    from safetensors.torch import save_file

    from mv2_jax.convert import reference_lora
    from mv2_jax.convert.ops import OPS

    before, after, file = in_peft(method, kind)
    op = OPS[kind]
    (leaf,) = op.forward(before.numpy())
    layers = lora_layers.Layers({"q": lora_layers.Place("q/kernel", op, leaf.size)})
    changes = lora_layers.fit(lora_read.products(file, {}), {"unet": layers})["unet"]["q/kernel"]
    (expected,) = op.forward(after.numpy())
    assert np.abs(expected - leaf).max() > 0.1
    np.testing.assert_allclose(changes[0].added(leaf), expected, rtol=0, atol=2e-6)
    path = tmp_path / "x.safetensors"
    save_file({name: value.contiguous() for name, value in file.items()}, path)
    weights = {"q.weight": before}
    reference_lora.merge(weights, str(path), 1.0, ("unet.",))
    np.testing.assert_allclose(weights["q.weight"], after, rtol=0, atol=2e-6)


def test_layers_that_are_not_there_are_skipped_and_counted():
    layers = {"unet": lora_layers.Layers.of_unet(CFG, TREE)}
    down, up = halves(0)
    source, _ = spellings()["kohya"]
    far = {"lora_te1_text_projection.lora_down.weight": down}
    far |= {"lora_te1_text_projection.lora_up.weight": up}
    far |= {"bundle_emb.word.string_to_param.*": up}
    assert lora_read.bundled(far) == ["word"]
    absent = []
    found = lora_layers.fit(lora_read.products({**source, **far}, {}), layers, absent=absent)
    assert absent == ["lora_te1_text_projection"] and len(found["unet"]) == 2
