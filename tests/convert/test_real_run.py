"""A public pipeline is converted, trained on real clips by a recipe, and goes back to PyTorch."""

import json

import jax
import numpy as np
import pytest
import real_clips
from converting import convert
from media_clips import frames_of
from torch_chains import ddim

from mv2_jax import bundle, cascade, cli
from mv2_jax.convert import export
from mv2_jax.diffusion import keys
from mv2_jax.train import cascades, overrides, recipe
from mv2_jax.train import cli as training

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

QUICK = ("steps=4", "log_every=1", "sample.steps=1", "optim.warmup=1", "optim.lr=1e-2",
         "data.image_every=0", "ema.decay=0.5")  # fmt: skip
TRAINED = {
    "i2v": {"motion"},
    "v2v": {"motion"},
    "lora": {"spatial", "motion"},
    "t2i_lora": {"spatial"},
    "controlnet": {"control"},
    "appearance": {"image_attn"},
}


def first(x):
    """Our one picture in torch's layout."""
    return torch.from_numpy(np.array(x)[:, 0]).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def held(sources, tmp_path_factory):
    """A converted cascade of small networks, and a folder of real clips."""
    root = tmp_path_factory.mktemp("real")
    flags = ["--unet", sources / "pipeline", "--motion", sources / "motion"]
    flags += ["--image-adapter", sources / "adapter.safetensors"]
    flags += ["--image-encoder", sources / "vision", "--controlnet", sources / "controlnet"]
    assert convert(*flags, "-o", root / "cascade") == 0
    return root / "cascade", real_clips.folder(root / "clips")


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_trains_what_it_says_alone(held, name, tmp_path):
    start, clips = held
    short, made = recipe.load(f"sd15/{name}")
    overrides.apply(made, [f"cascade={start}", f"data.root={clips}", "remat=False"])
    if name == "t2i_lora":
        overrides.apply(made, ["data.aspect_step=16"])
    (phase,) = made.order
    cfg = made.phases[phase]
    cascades.complete(cfg)
    task = recipe.make_task(cfg, recipe.begin_from(tmp_path, short, made, phase), tmp_path / phase)
    params = task.init(jax.random.key(0))
    assert set(params) == TRAINED[name]
    assert all(str(leaf.dtype) == "float16" for leaf in jax.tree.leaves(task.frozen))
    batch = next(task.batches(0, 0))
    grads, _ = jax.eval_shape(jax.grad(task.loss, has_aux=True), params, task.frozen, batch,
                              jax.random.key(0))  # fmt: skip
    assert jax.tree.map(np.shape, grads) == jax.tree.map(np.shape, params)
    error = jax.eval_shape(task.error_at, params, task.frozen, batch, jax.random.key(0), 0.5)
    assert error.shape == ()


def test_a_recipe_refuses_the_other_kind_of_network(held):
    _, made = recipe.load("sdxl/lora")
    overrides.apply(made, [f"cascade={held[0]}"])
    with pytest.raises(ValueError, match=r"this recipe is for sdxl, and i2v of .* is sd15"):
        cascades.complete(made.phases.i2v)


@pytest.mark.slow
def test_a_lora_of_real_clips_goes_back_to_diffusers_and_into_a_video(held, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    start, clips = held
    asked = [*QUICK, f"cascade={start}", f"data.root={clips}"]
    assert training.main("sd15/lora", asked, out=str(tmp_path)) == 0
    lines = (tmp_path / "sd15/lora/i2v/metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines) and len(lines) == 4
    old, packed = bundle.read(start), bundle.read(tmp_path / "sd15/lora/cascade")
    for whole, name in ((old, "base"), (packed, "trained")):
        export.write(whole, "spatial", tmp_path / name)
    base, trained = (
        diffusers.UNet2DConditionModel.from_pretrained(tmp_path / name).eval()
        for name in ("base", "trained")
    )
    file = packed.folder / "lora.diffusers.safetensors"
    told = torch.randn(1, 4, 12, 10), torch.tensor([400]), torch.randn(1, 7, 32)
    with torch.no_grad():
        before, wanted = base(*told).sample, trained(*told).sample
        base.load_lora_adapter(str(file), prefix="unet")
        found = base(*told).sample
    change = (wanted - before).abs().max()
    assert change > 0.01 * before.abs().max()
    # The packed weights are rounded to half precision, the LoRA's are not.
    assert (found - wanted).abs().max() < 2e-3 * wanted.abs().max() and change > 0
    video = tmp_path / "out.mp4"
    loras = [str(file), f"{packed.folder / 'motion_lora.diffusers.safetensors'}@i2v"]
    flags = [word for lora in loras for word in ("--lora", lora)]
    asked = ["bikes in a park", "--weights", str(start), "--vfi", "none", "--i2v-steps", "2"]
    asked += ["--t2i-steps", "2", "--v2v-steps", "2", "-o", str(video)]
    assert cli.main(["generate", *asked, *flags]) == 0
    assert frames_of(video).shape[0] == 4


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["i2v", "v2v"])
def test_a_video_stage_is_distilled_on_ones_own_data(held, stage, tmp_path):
    start, clips = held
    _, made = recipe.load("own/few")
    asked = [f"cascade={start}", f"data.root={clips}", "data.aspect_step=16", "remat=False"]
    overrides.apply(made, [*asked, f"stage={stage}", "train=('motion',)"])
    cfg = made.phases.few
    cascades.complete(cfg)
    task = recipe.make_task(cfg, recipe.begin_from(tmp_path, "few", made, "few"), tmp_path / "few")
    params, batch = task.init(jax.random.key(0)), next(task.batches(0, 0))
    assert "teacher" not in task.frozen  # it is what the LoRA is over
    (loss, _), grads = jax.eval_shape(
        jax.value_and_grad(task.loss, has_aux=True), params, task.frozen, batch, jax.random.key(0)
    )
    assert loss.shape == () and jax.tree.map(np.shape, grads) == jax.tree.map(np.shape, params)
    # The sheet is sampled as the student is.
    sheet = task.sample(params, task.frozen, jax.random.key(0))
    assert sheet.sheet.ndim == 3 and sheet.frames.ndim == 4


@pytest.mark.slow
def test_a_distilled_lora_is_an_lcm_lora_in_diffusers(held, tmp_path, monkeypatch):
    start, clips = held
    asked = ["steps=4", "log_every=1", "optim.warmup=1", "optim.lr=1e-2", "ema.decay=0.5"]
    asked += [f"cascade={start}", f"data.root={clips}", "data.aspect_step=16", "lora.rank=4"]
    assert training.main("own/few", [*asked, "lora.alpha=2"], out=str(tmp_path)) == 0
    folder = tmp_path / "own/few/cascade"
    packed = cascade.load(bundle.read(folder))
    whole, schedule = bundle.read(start), packed.stage("t2i").stage.schedule
    for name in ("spatial", "text_encoder", "vae"):
        export.write(whole, name, tmp_path / name)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae"),
        text_encoder=transformers.CLIPTextModel.from_pretrained(tmp_path / "text_encoder").float(),
        tokenizer=None,
        unet=diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "spatial"),
        scheduler=diffusers.LCMScheduler.from_config(ddim(schedule).config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    chain = packed.chain("t2i", ["bikes in a park"], keys.seeds([1]), {})
    begun, shape = chain.state, chain.state.x.shape[2:]

    def theirs():
        step = iter(range(chain.steps))

        def drawn(*args, **kwargs):
            each = keys.fold(keys.fold(begun.keys, "sampler"), next(step))
            return first(keys.normal(each, (1, *shape)))

        monkeypatch.setattr(diffusers.schedulers.scheduling_lcm, "randn_tensor", drawn)
        ids = torch.from_numpy(np.array(packed.ids(["bikes in a park"], stage="t2i")[0])).long()
        told = pipeline.text_encoder(ids.reshape(1, -1))[0]
        return pipeline(
            prompt_embeds=told,
            latents=first(begun.x),
            height=shape[0] * pipeline.vae_scale_factor,
            width=shape[1] * pipeline.vae_scale_factor,
            num_inference_steps=chain.steps,
            guidance_scale=1.0,
            output_type="latent",
        ).images

    base = theirs()
    pipeline.load_lora_weights(str(folder), weight_name="lora.diffusers.safetensors")
    found, ours = theirs(), first(chain.end().x)
    assert chain.steps == 4 and chain.rule.rows == 1
    # The packed weights are rounded to half precision, the LoRA's are not.
    change = (found - base).abs().max()
    assert change > 0.1 * base.abs().max() and (found - ours).abs().max() < 0.005 * change
