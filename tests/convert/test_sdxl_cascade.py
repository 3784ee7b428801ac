"""The whole cascade on SDXL: converted, compared with torch, run, and given back."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick
from safetensors.numpy import save_file
from torch_chains import ddim, drift, sdxl_prompt, show_pictures

from mv2_jax import bundle, cascade, cli
from mv2_jax.diffusion import guidance, keys
from mv2_jax.models import clip_vision
from mv2_jax.stages import chain, i2v, stage

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(small, sources, tmp_path_factory):
    root = tmp_path_factory.mktemp("sdxl")
    for name, part in small.sdxl().items():
        part.save_pretrained(root / "sdxl" / name)
    small.sdxl_controlnet().save_pretrained(root / "controlnet")
    save_file(small.sdxl_adapter(), root / "adapter.safetensors")
    flags = ["--unet", root / "sdxl", "--motion", sources / "motion", "--norm-scope", "clip"]
    flags += ["--image-adapter", root / "adapter.safetensors", "--controlnet", root / "controlnet"]
    flags += ["--image-encoder", sources / "vision", "-o", root / "cascade"]
    sizes = "--t2i-size 16x16 --i2v-size 14x10 --v2v-size 16x16 --frames 3 --dtype keep".split()
    assert cli.main(["convert", *map(str, flags), *sizes]) == 0
    return bundle.read(root / "cascade")


def test_it_is_one_sdxl_for_every_stage(whole):
    assert set(whole.components) == {
        *("text_encoder", "text_encoder_2", "vae", "spatial", "motion_i2v", "motion_v2v"),
        *("image_encoder", "image_attn", "control"),
    }
    assert whole.config("vae").scaling_factor == 0.18215  # its folder says so
    assert whole.config("control").unet.pooled_width == 24
    moving = whole.stages["i2v"]
    assert moving.unet.pooled_width == 24 and moving.unet.motion.norm_scope == "clip"
    assert (moving.schedule.kind, moving.schedule.beta_end) == ("scaled_linear", 0.02)
    assert whole.stages["t2i"].schedule.beta_end == 0.012


def test_every_component_is_torchs(whole, capsys):
    assert cli.main(["verify", str(whole.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 9 + 3 and all("the same as" in line for line in lines)
    for line in lines:
        assert float(line.split()[1]) < 5e-6, line


def hotshot(state):
    """Motion modules of diffusers in the names of Hotshot-XL's own file."""
    out = {}
    for name, value in state.items():
        name = name.replace("motion_modules", "temporal_attentions").replace(".norm3.", ".ff_norm.")
        for n in "12":
            name = name.replace(f".attn{n}.", f".attention_blocks.{int(n) - 1}.")
            if "transformer_blocks" in name:
                name = name.replace(f".norm{n}.", f".norms.{int(n) - 1}.")
        if not name.endswith(".pos_embed.pe"):
            out[name] = value
            continue
        for n in range(2):
            encoder = f"attention_blocks.{n}.pos_encoder.positional_encoding"
            out[name.replace("pos_embed.pe", encoder)] = value.clone()
    return out


def test_hotshots_layers_are_motion_modules(small, sources, tmp_path, capsys):
    """In a file of their own, and within its UNet's folder; each frame is normalised alone, and
    their schedule is SDXL's own."""
    from safetensors.torch import save_file as save_tensors

    parts, modules = small.sdxl(), hotshot(small.motion().state_dict())
    for name, part in parts.items():
        part.save_pretrained(tmp_path / "sdxl" / name)
    save_tensors(modules, tmp_path / "hsxl.safetensors")
    shutil.copytree(tmp_path / "sdxl", tmp_path / "both")
    held = tmp_path / "both" / "unet"
    file = held / "diffusion_pytorch_model.safetensors"
    save_tensors({**parts["unet"].state_dict(), **modules}, file)
    settings = json.loads((held / "config.json").read_text())
    for side in ("down_block_types", "up_block_types"):
        settings[side] = [block.replace("2D", "3D") for block in settings[side]]
    settings["_class_name"] = "UNet3DConditionModel"
    (held / "config.json").write_text(json.dumps(settings))
    sizes = "--t2i-size 16x16 --i2v-size 14x10 --v2v-size 16x16 --frames 3 --dtype keep".split()
    for name, flags in (
        ("one", ["--unet", tmp_path / "sdxl", "--motion", tmp_path / "hsxl.safetensors"]),
        ("two", ["--unet", tmp_path / "both"]),
    ):
        words = [*map(str, flags), "-o", str(tmp_path / name), *sizes]
        assert cli.main(["convert", *words]) == 0
        made = bundle.read(tmp_path / name)
        assert made.config("motion_i2v").norm_scope == "frame"
        moving = made.stages["i2v"].schedule
        assert (moving.kind, moving.beta_end) == ("scaled_linear", 0.012)
        capsys.readouterr()
        assert cli.main(["verify", str(tmp_path / name)]) == 0
        assert "its norms over each frame" in capsys.readouterr().out


def test_twenty_five_guided_steps(small, sources, whole):
    """AnimateDiffSDXLPipeline with an IP-Adapter-Plus from the same noise, step by step, over odd
    planes (5 x 7, then 3 x 4). It has no ControlNet, so ours is off.

    diffusers is corrected in one place: `UNetMotionModel.from_unet2d` forgets SDXL's added
    embedding of pooled text and sizes, and leaves random weights there (up to 9% of latents)."""
    import transformers

    four, parts, frames, steps, scale = cascade.load(whole), small.sdxl(), 3, 25, 5.0
    network = diffusers.UNetMotionModel.from_unet2d(parts["unet"], small.motion())
    network.add_embedding.load_state_dict(parts["unet"].add_embedding.state_dict())
    show_pictures(network, small.sdxl_adapter())
    encoders = [parts["text_encoder"], parts["text_encoder_2"]]
    pipeline = diffusers.AnimateDiffSDXLPipeline(
        vae=parts["vae"],
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=None,
        tokenizer_2=None,
        unet=network.eval(),
        motion_adapter=None,
        scheduler=ddim(four.keyframes.stage.schedule),
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.check_inputs = lambda *_: None  # it wants sides of eight pixels, whatever the VAE's

    image = np.random.default_rng(3).uniform(-1, 1, (1, 10, 14, 3)).astype(np.float32)
    vision = transformers.CLIPVisionModelWithProjection.from_pretrained(sources / "vision").eval()
    pixels = torch.from_numpy(np.array(clip_vision.preprocess(jnp.asarray(image), 28)))
    pixels = pixels.permute(0, 3, 1, 2)

    def states(x):
        return vision(x, output_hidden_states=True).hidden_states[-2]

    ids = four.ids(["a lighthouse in a storm"], "blurry")
    state = i2v.start(
        keys.seeds([7]), jnp.zeros((1, 5, 7, 4)), np.float32(0), cfg=four.keyframes, steps=steps
    )
    theirs = []

    def keep(pipeline, i, t, values):
        theirs.append(values["latents"].permute(0, 2, 3, 4, 1).numpy().copy())
        return values

    with torch.no_grad():
        towards, away = (sdxl_prompt(*encoders, np.array(side), 49407) for side in ids)
        pipeline(
            height=10,
            width=14,
            num_frames=frames,
            num_inference_steps=steps,
            guidance_scale=scale,
            latents=torch.from_numpy(np.array(state.x)).permute(0, 4, 1, 2, 3),
            prompt_embeds=towards[0],
            pooled_prompt_embeds=towards[1],
            negative_prompt_embeds=away[0],
            negative_pooled_prompt_embeds=away[1],
            ip_adapter_image_embeds=[torch.stack([states(pixels * 0), states(pixels)])],
            output_type="latent",
            callback_on_step_end=keep,
        )
    params, cfg = four.parameters("i2v"), four.keyframes
    condition = quick(stage.condition, "cfg", "rule")
    advance = quick(chain.advance, "cfg", "rule", "steps", "k")
    inputs = {**dict(zip(("ids", "negative"), ids)), "image": jnp.asarray(image)}
    scales, mine = guidance.make(scale), []
    rule = cfg.rule.least(scales)
    conditioning = condition(params, {**inputs, "control_scale": np.float32(0)}, cfg=cfg, rule=rule)
    for _ in range(steps):
        state = advance(params, conditioning, scales, state, cfg=cfg, rule=rule, steps=steps, k=1)
        mine.append(state.x)
    assert drift(mine, theirs) < 1e-5  # measured: 2.1e-6 after any step


def test_it_makes_a_video(whole, tmp_path):
    steps = "--t2i-steps 1 --i2v-steps 1 --v2v-steps 1 --between 1".split()
    out = tmp_path / "v.mp4"
    words = ["a lighthouse in a storm, oil painting", "--weights", str(whole.folder), "-o"]
    assert cli.main(["generate", *words, str(out), *steps]) == 0
    side = json.loads(out.with_suffix(".json").read_text())
    assert side["result"]["frames"] == 5 and out.stat().st_size > 500


def test_its_controlnet_goes_back(small, whole, tmp_path):
    back = tmp_path / "back"
    assert cli.main(["export", str(whole.folder), "control", "-o", str(back)]) == 0
    ours = diffusers.ControlNetModel.from_pretrained(back).state_dict()
    theirs = small.sdxl_controlnet().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
