"""What a trained LoRA is written as is what diffusers and PEFT load, and what `--lora` reads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import params
from mv2_jax.convert import assemble, export, lora_layers, lora_write
from mv2_jax.convert.checkpoint import open_checkpoint
from mv2_jax.convert.lora_read import products
from mv2_jax.models.clip_text import TextEncoder
from mv2_jax.models.unet import UNetBackbone
from mv2_jax.nn.transformer import Context
from mv2_jax.train import lora

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

RANK, ALPHA = 3, 1.5
MATCHES = {
    "spatial": r"attn|proj_in|conv1|time_emb_proj",
    "motion_i2v": r"attn./attn/",
    "text_encoder": r"_proj/|fc1",
}


@pytest.fixture(scope="module")
def held(sources, tmp_path_factory):
    """A converted cascade, and a LoRA of its networks with numbers as training might leave them."""
    root = tmp_path_factory.mktemp("lora")
    wanted = assemble.Wanted(unet=str(sources / "pipeline"), motion=str(sources / "motion"))
    made = assemble.assemble(wanted)
    whole = assemble.write(made, root / "cascade", dtype=None, name="small")
    parts, merged = {}, {}
    for name, match in MATCHES.items():
        tree, rng = whole.load(name), np.random.default_rng(len(name))
        factors = jax.tree.map(
            lambda x, rng=rng: np.float32(0.2 * rng.normal(size=x.shape)),
            lora.init(jax.random.key(0), tree, RANK, match),
        )
        parts[name] = (factors, tree, whole.config(name))
        merged[name] = lora.merge(tree, factors, ALPHA / RANK)
    written = lora_write.write(root, parts, ALPHA)
    assert {path.name for path in written} == {
        "lora.kohya.safetensors",
        "lora.diffusers.safetensors",
        "motion_lora.diffusers.safetensors",
        "motion_lora.animatediff.safetensors",
    }
    return root, whole, merged


def saved(held, component):
    """A component as the library loads it."""
    root, whole, _ = held
    out = root / component
    if not out.exists():
        export.write(whole, component, out)
    return out


def ours(cfg, trees, x, t, text):
    """The UNet's output in torch's layout: x [B, T, C, h, w]."""
    x = jnp.asarray(x).transpose(0, 1, 3, 4, 2)
    out = UNetBackbone(cfg).apply(trees, x, jnp.asarray(t), Context(jnp.asarray(text)))
    return np.asarray(out).transpose(0, 1, 4, 2, 3)


def inputs(frames):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1, frames, 4, 10, 6)).astype(np.float32)
    return x, np.float32([321.0]), rng.normal(size=(1, 7, 32)).astype(np.float32)


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_a_pipeline_with_the_file_is_our_network_merged(held, form):
    root, whole, merged = held
    pipeline = diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=transformers.CLIPTextModel.from_pretrained(saved(held, "text_encoder")),
        tokenizer=None,
        unet=diffusers.UNet2DConditionModel.from_pretrained(saved(held, "spatial")),
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    x, t, text = inputs(1)
    ids = np.int32([[49406, 320, 1125, 539, 49407, 49407, 49407]])

    @torch.no_grad()
    def theirs():
        told = [torch.from_numpy(a) for a in (x[:, 0], t, text)]
        return (
            pipeline.unet(*told).sample.numpy(),
            pipeline.text_encoder(torch.from_numpy(ids).long()).last_hidden_state.numpy(),
        )

    before = theirs()
    pipeline.load_lora_weights(str(root), weight_name=f"lora.{form}.safetensors")
    after = theirs()
    encoder = TextEncoder(whole.config("text_encoder"))
    mine = (
        ours(whole.config("spatial"), merged, x, t, text)[:, 0],
        np.asarray(encoder.apply({"params": merged["text_encoder"]}, jnp.asarray(ids)).last),
    )
    for was, now, own in zip(before, after, mine):
        assert np.abs(now - was).max() > 0.05 * np.abs(was).max()
        np.testing.assert_allclose(own, now, rtol=0, atol=2e-5 * np.abs(now).max())


@pytest.mark.slow
def test_a_moving_pipeline_takes_the_motion_modules_too(held):
    root, whole, merged = held
    unet = diffusers.UNetMotionModel.from_unet2d(
        diffusers.UNet2DConditionModel.from_pretrained(saved(held, "spatial")),
        diffusers.MotionAdapter.from_pretrained(saved(held, "motion_i2v")),
    )
    for name in ("lora", "motion_lora"):
        state, alphas, metadata = diffusers.loaders.StableDiffusionLoraLoaderMixin.lora_state_dict(
            str(root), weight_name=f"{name}.diffusers.safetensors", return_lora_metadata=True
        )
        unet.load_lora_adapter(
            state, prefix="unet", adapter_name=name, network_alphas=alphas, metadata=metadata
        )
    unet.set_adapters(["lora", "motion_lora"], [1.0, 1.0])
    # diffusers' modules are normalised over whole clips.
    motion = dataclasses.replace(whole.config("motion_i2v"), norm_scope="clip")
    cfg = dataclasses.replace(whole.config("spatial"), motion=motion)
    x, t, text = inputs(3)
    trees = {"spatial": merged["spatial"], "motion": merged["motion_i2v"]}
    own = ours(cfg, trees, x, t, text)
    with torch.no_grad():
        told = [torch.from_numpy(a) for a in (x.swapaxes(1, 2), t, np.repeat(text, 3, axis=0))]
        out = unet(*told).sample.numpy().swapaxes(1, 2)
    still = ours(cfg, {**trees, "motion": whole.load("motion_i2v")}, x, t, text)
    assert np.abs(still - own).max() > 0.05 * np.abs(own).max()
    np.testing.assert_allclose(own, out, rtol=0, atol=3e-5 * np.abs(out).max())


def test_peft_reads_it(held):
    import peft
    from safetensors.torch import load_file

    root, _, merged = held
    unet = diffusers.UNet2DConditionModel.from_pretrained(saved(held, "spatial"))
    state = load_file(root / "lora.diffusers.safetensors")
    state = {name[5:]: value for name, value in state.items() if name.startswith("unet.")}
    modules = sorted({name.partition(".lora_")[0] for name in state})
    settings = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=modules)
    model = peft.get_peft_model(unet, settings)
    named = {f"base_model.model.{name}": value for name, value in state.items()}
    assert not peft.set_peft_model_state_dict(model, named).unexpected_keys
    fused = model.merge_and_unload().state_dict()
    name = "down_blocks.0.resnets.0.conv1"
    wanted = merged["spatial"]["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]
    np.testing.assert_allclose(fused[f"{name}.weight"].numpy().transpose(2, 3, 1, 0), wanted,
                               rtol=0, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("form", ["diffusers", "animatediff"])
def test_what_is_written_is_read_back(held, form):
    root, whole, merged = held
    (found,) = open_checkpoint(str(root / f"motion_lora.{form}.safetensors")).found
    tree = whole.load("motion_i2v")
    layers = lora_layers.Layers.of_motion(whole.config("motion_i2v"), tree)
    changes = lora_layers.fit(products(found.part.tensors, found.settings), {"unet": layers})[
        "unet"
    ]
    again = dict(lora_layers.changed(params.flatten(tree).items(), changes))
    for name, leaf in params.flatten(merged["motion_i2v"]).items():
        np.testing.assert_allclose(again[name], leaf, rtol=0, atol=1e-6)
