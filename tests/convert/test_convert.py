"""`mv2 convert` end to end, on small checkpoints that diffusers and transformers saved."""

import json
import shutil

import numpy as np
import pytest
from converting import convert, refused
from safetensors.numpy import load_file, save_file

from mv2_jax import bundle
from mv2_jax.convert import ldm
from mv2_jax.params import flatten

torch = pytest.importorskip("torch")

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory):
    """A whole cascade, and what was said while it was made."""
    out = tmp_path_factory.mktemp("converted") / "cascade"
    given = {"unet": "pipeline", "motion": "motion", "image-adapter": "adapter.safetensors"}
    given |= {"image-encoder": "vision", "controlnet": "controlnet"}
    flags = [word for name, path in given.items() for word in (f"--{name}", sources / path)]
    assert convert(*flags, "-o", out) == 0
    return out


def test_a_whole_cascade(whole, sources):
    made = bundle.read(whole)
    made.verify()
    assert set(bundle.COMPONENTS) - set(made.components) == set(bundle.OPTIONAL)
    weight = load_file(sources / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    kernel = flatten(made.load("spatial"))[Q.replace("blocks.", "blocks_").replace(
        "attentions.", "attentions_").replace(".", "/") + "/kernel"]  # fmt: skip
    np.testing.assert_array_equal(kernel, weight[f"{Q}.weight"].T.astype(np.float16))
    moving, still = made.stages["i2v"], made.stages["t2i"]
    assert still.schedule.kind == "scaled_linear" and moving.schedule.kind == "linear"
    assert moving.unet.motion == made.config("motion_i2v") and moving.unet.image_tokens
    assert (moving.frames, moving.size, made.stages["v2v"].size) == (4, (24, 24), (32, 32))
    assert made.components["motion_v2v"].file == "motion_i2v.safetensors"  # stored once
    origins = json.loads((whole / "sources.json").read_text())
    assert origins["vae"]["path"] == str(sources / "pipeline" / "vae")


def test_names_of_files_mean_nothing_and_single_files_hold_the_same(
    whole, sources, small, tmp_path, capsys
):
    """A training checkpoint of LDM's, under a wrong name, gives what the pipeline gave."""
    unet, vae = small.unet().state_dict(), small.vae().state_dict()
    state = {"betas": torch.ones(4), "model_ema.decay": torch.ones(())}
    named = small.as_ldm(unet, ldm.unet_modules(2, 1))
    state |= {f"model.diffusion_model.{name}": value for name, value in named.items()}
    state |= {f"first_stage_model.{k}": value for k, value in small.as_ldm_vae(vae).items()}
    inner = "cond_stage_model.transformer.text_model."
    state |= {
        inner + name.removeprefix("text_model."): value
        for name, value in small.text().state_dict().items()
    }
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "vae-lora.bin")
    assert convert("--unet", tmp_path / "vae-lora.bin", "-o", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "a UNet of SD1.5's kind, in a single file's (LDM) names" in said
    assert "will want more: motion_i2v" in said and "--image-adapter" in said
    ours, first = bundle.read(tmp_path / "out"), bundle.read(whole)
    assert set(ours.components) == {"spatial", "vae", "text_encoder"}
    for name, component in ours.components.items():
        assert component.config == first.config(name)
        theirs = flatten(first.load(name))
        for leaf, array in flatten(ours.load(name)).items():
            np.testing.assert_array_equal(array, theirs[leaf], err_msg=leaf)


def test_loras_are_merged_with_their_weights(sources, tmp_path, capsys):
    rng = np.random.default_rng(0)
    weights = load_file(sources / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    expected = weights[f"{Q}.weight"].astype(np.float64)
    flags = []
    for name, weight in (("a", 0.5), ("b", -2.0)):
        down, up = rng.normal(size=(2, 3, 64)).astype(np.float32)
        stem = f"lora_unet_{Q.replace('.', '_')}"
        up = np.ascontiguousarray(up.T)
        file = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        save_file({**file, f"{stem}.alpha": np.float32([6.0])}, tmp_path / f"{name}.safetensors")
        expected = expected + weight * 2.0 * up.astype(np.float64) @ down
        flags += ["--lora", f"{tmp_path / name}.safetensors:{weight:g}"]
    unet = ["--unet", sources / "pipeline" / "unet", "-o", tmp_path / "out", "--dtype", "keep"]
    assert convert(*unet, *flags) == 0
    assert "with 0.5 x a.safetensors, with -2 x b.safetensors" in capsys.readouterr().out
    leaves = flatten(bundle.read(tmp_path / "out").load("spatial"))
    (changed,) = [k for k in leaves if "down_blocks_0" in k and "attn1/to_q" in k]
    np.testing.assert_allclose(leaves[changed], expected.T, rtol=0, atol=5e-6)
    line = refused(capsys, *unet[:2], "-o", tmp_path / "x", *flags[:2], *flags[:2])
    assert "one is given twice" in line


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    """A LoRA of a layer of the UNet and one of the text encoder; what it adds to the first."""
    rng = np.random.default_rng(5)
    file, path = {}, tmp_path_factory.mktemp("lora") / "style.safetensors"
    words = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    for stem, width in ((f"unet.{Q}", 64), (words, 32)):
        down, up = rng.normal(size=(2, 4, width)).astype(np.float32)
        file[f"{stem}.lora_A.weight"] = down
        file[f"{stem}.lora_B.weight"] = np.ascontiguousarray(up.T)
    save_file(file, path)
    return path, (file[f"unet.{Q}.lora_B.weight"] @ file[f"unet.{Q}.lora_A.weight"]).T


def test_a_lora_goes_into_the_stages_that_are_named(sources, style, tmp_path, capsys):
    """What frames are trained beside (AnimateLCM's, v3's adapter) stays out of T2I's pictures."""
    path, change = style
    leaf = "down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel"
    words = "encoder/layers_0/self_attn/q_proj/kernel"
    unet = ["--unet", sources / "pipeline", "--dtype", "keep"]

    def parts(stages, *more):
        out = tmp_path / f"at{stages}"
        assert convert(*unet, *more, "--lora", f"{path}:0.5{stages}", "-o", out) == 0
        made = bundle.read(out)
        return made, {
            name: flatten(made.load(name))[leaf if "unet" in name or name == "spatial" else words]
            for name in ("spatial", "text_encoder", "t2i_unet", "t2i_text_encoder")
            if name in made.components
        }

    plain = load_file(sources / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    plain = plain[f"{Q}.weight"].T
    _, both = parts("", "--motion", sources / "motion")
    assert both.keys() == {"spatial", "text_encoder"}  # shared, as ever
    assert "its LoRAs change T2I's pictures too" in capsys.readouterr().out
    made, video = parts("@i2v,v2v")
    np.testing.assert_allclose(video["spatial"], plain + 0.5 * change, atol=2e-6)
    np.testing.assert_array_equal(video["t2i_unet"], plain)
    assert not np.array_equal(video["text_encoder"], video["t2i_text_encoder"])
    assert made.stages["t2i"].unet == made.config("t2i_unet")
    assert "T2I's pictures" not in capsys.readouterr().out
    _, picture = parts("@t2i")
    np.testing.assert_array_equal(picture["spatial"], plain)
    np.testing.assert_allclose(picture["t2i_unet"], plain + 0.5 * change, atol=2e-6)
    made, all_three = parts("@t2i,v2v,i2v")
    np.testing.assert_array_equal(all_three["t2i_unet"], all_three["spatial"])
    assert made.components["t2i_unet"].file == "spatial.safetensors"  # stored once
    for stages, text in (
        ("@i2v", "the stages i2v and v2v share their spatial weights"),
        ("@i2w,v2v", "unknown stage 'i2w' (known: t2i, i2v, v2v); did you mean 'i2v'?"),
        ("@vfi", "unknown stage 'vfi' (known: t2i, i2v, v2v)"),
    ):
        line = refused(capsys, *unet, "--lora", f"{path}{stages}", "-o", tmp_path / "x")
        assert text in line
    twice = ["--lora", f"{path}@t2i", "--lora", f"{path}:0.5"]
    assert "one is given twice" in refused(capsys, *unet, *twice, "-o", tmp_path / "x")


def test_motion_modules_say_which_lora_they_want(sources, small, style, tmp_path, capsys):
    small.motion(frames=32).save_pretrained(tmp_path / "v3")
    lcm = {k: v for k, v in small.motion().state_dict().items() if not k.endswith(".pe")}
    torch.save(lcm, tmp_path / "lcm.ckpt")
    for modules, text in (("v3", None), ("lcm.ckpt", "AnimateLCM_sd15_t2v_lora")):
        flags = ["--unet", sources / "pipeline", "--motion", tmp_path / modules]
        assert convert(*flags, "-o", tmp_path / "out", "--replace") == 0
        said = capsys.readouterr().out
        # Small networks have two levels; v3 is known by its four.
        assert (text is None) == ("published with a LoRA" not in said)
        assert text is None or text in said
        named = [*flags, "--lora", f"{style[0]}@i2v,v2v", "-o", tmp_path / "out", "--replace"]
        assert convert(*named) == 0
        assert "published with a LoRA" not in capsys.readouterr().out


def test_a_controlnet_that_pools_its_residuals(sources, small, tmp_path):
    """ControlNet 1.1 shuffle's folder."""
    small.controlnet(global_pool_conditions=True).save_pretrained(tmp_path / "shuffle")
    flags = ["--unet", sources / "pipeline", "--controlnet"]
    assert convert(*flags, tmp_path / "shuffle", "-o", tmp_path / "a") == 0
    assert bundle.read(tmp_path / "a").config("control").global_pool
    assert convert(*flags, sources / "controlnet", "-o", tmp_path / "b") == 0
    index = json.loads((tmp_path / "b" / bundle.INDEX).read_text())
    assert "global_pool" not in index["components"]["control"]["config"]  # digests stay


def test_damaged_and_hostile_sources_leave_no_folder(sources, tmp_path, capsys):
    good = sources / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    state, out = load_file(good), tmp_path / "out"

    def give(name, change):
        save_file({k: v for k, v in (state | change).items() if v is not None}, tmp_path / name)
        return refused(capsys, "--unet", tmp_path / name, "-o", out)

    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-9])
    assert "is damaged" in refused(capsys, "--unet", tmp_path / "cut.safetensors", "-o", out)
    assert "there is no" in refused(capsys, "--unet", tmp_path / "gone.safetensors", "-o", out)
    bad = {f"{Q}.weight": np.full((64, 64), np.nan, np.float32)}
    assert "not finite (NaN" in give("nan.safetensors", bad)
    large = {f"{Q}.weight": np.full((64, 64), 1e6, np.float32)}
    assert "float16 cannot hold; convert with --dtype bfloat16" in give("l.safetensors", large)
    assert "1 missing from the source" in give("m.safetensors", {f"{Q}.weight": None})
    strange = {"mystery.weight": np.ones(3, np.float32)}
    assert "1 tensors of unknown use: mystery.weight" in give("s.safetensors", strange)
    wide = {"conv_in.weight": np.ones((64, 9, 3, 3), np.float32)}
    assert "takes 9 channels (inpainting, say)" in give("w.safetensors", wide)
    torch.save({"x": Hostile()}, tmp_path / "hostile.ckpt")
    line = refused(capsys, "--unet", tmp_path / "hostile.ckpt", "-o", out)
    assert "holds more than tensors" in line
    assert not out.exists() and not list(tmp_path.glob(".out*"))


class Hostile:
    """A pickle that would run code where pickles are trusted."""

    def __reduce__(self):
        return print, ("this must not run",)


def test_what_does_not_fit_is_said_in_words(sources, small, tmp_path, capsys):
    unet, out = ["--unet", sources / "pipeline"], ["-o", tmp_path / "out"]
    line = refused(capsys, *unet, "--vae", sources / "motion", *out)
    assert "holds motion modules (8 frames, no middle block), not a VAE" in line
    line = refused(capsys, "--unet", sources / "vision", *out)
    assert "holds a CLIP vision encoder (width 48, 3 layers), not a UNet" in line
    small.text(width=64).save_pretrained(tmp_path / "text")
    line = refused(capsys, *unet, "--text-encoder", tmp_path / "text", *out)
    assert "does not fit the UNet: wide 64, not 32" in line
    deep = small.motion(widths=(64, 128, 128))  # as SDXL's modules have other levels than SD1.5
    deep.save_pretrained(tmp_path / "deep")
    line = refused(capsys, *unet, "--motion", tmp_path / "deep", *out)
    assert "does not fit the UNet: widths by level (64, 128, 128), not (64, 128)" in line
    line = refused(capsys, *unet, "--motion", sources / "motion", *out, "--few-steps", "lcn")
    assert "invalid choice: 'lcn'" in line
    line = refused(capsys, *unet, *out, "--motoin", "x")
    assert "unknown argument --motoin; did you mean '--motion'?" in line
    shutil.copytree(sources / "motion", tmp_path / "motion")
    save_file({"a.b": np.ones(2)}, tmp_path / "motion" / "diffusion_pytorch_model.safetensors")
    line = refused(capsys, *unet, "--motion", tmp_path / "motion", *out)
    assert "nothing known in it: its 1 tensors look like nothing known (a.b)" in line


def test_hub_ids_are_found_in_the_cache(sources, tmp_path, monkeypatch, capsys):
    pytest.importorskip("huggingface_hub")
    home = tmp_path / "hub" / "models--someone--small-sd"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    snapshot = home / "snapshots" / commit
    shutil.copytree(sources / "pipeline", snapshot)
    shutil.copy(sources / "adapter.safetensors", snapshot / "unet")
    shutil.copytree(sources / "vision", snapshot / "models" / "image_encoder")
    (snapshot / "unet" / "adapter.safetensors").rename(snapshot / "models" / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    flags = ["--image-adapter", "someone/small-sd/models/a.safetensors"]
    flags += ["--image-encoder", "someone/small-sd/models/image_encoder", "-o", out]
    with monkeypatch.context() as patch:
        for name in ("snapshot_download", "hf_hub_download"):
            _with_cache(patch, name, tmp_path / "hub")
        assert convert("--unet", "someone/small-sd", *flags) == 0
        assert len(bundle.read(out).components) == 5
        line = refused(capsys, "--unet", "someone/else", "-o", tmp_path / "other")
    assert "there is no someone/else here, and the hub does not give it" in line


def test_sdxl_makes_the_pictures(sources, small, tmp_path, capsys):
    """SDXL's UNet, VAE and two text encoders go to T2I; the video stages keep SD1.5's."""
    import diffusers

    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=[1, 2],
        attention_head_dim=(2, 4),
        cross_attention_dim=96,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )
    folder = tmp_path / "sdxl"
    small.randomise(unet).save_pretrained(folder / "unet")
    small.vae(9).save_pretrained(folder / "vae")
    small.text(10).save_pretrained(folder / "text_encoder")
    small.text(11, width=64, projection=24).save_pretrained(folder / "text_encoder_2")
    (folder / "scheduler").mkdir()
    schedule = {
        "beta_end": 0.013,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    flags = ["--unet", sources / "pipeline", "--t2i", folder, "-o", tmp_path / "out"]
    assert convert(*flags) == 0
    made = bundle.read(tmp_path / "out")
    own = {name: made.config(name) for name in bundle.OPTIONAL if name.startswith("t2i_")}
    assert own["t2i_unet"].pooled_width == 24 and own["t2i_unet"].size_ids_width == 8
    assert (own["t2i_text_encoder"].width, own["t2i_text_encoder_2"].projection) == (32, 24)
    still = made.stages["t2i"]
    assert still.unet == own["t2i_unet"] and still.schedule.beta_end == 0.013
    assert (still.schedule.prediction, still.schedule.spacing) == ("v", "trailing")
    shutil.rmtree(folder / "text_encoder")
    line = refused(capsys, *flags[:-1], tmp_path / "other")
    assert "SDXL's UNet wants two text encoders" in line and "and 1 came with it" in line


def _with_cache(patch, name, folder):
    """The hub's function as if this were its cache and there were no network."""
    import huggingface_hub

    real = getattr(huggingface_hub, name)
    offline = {"cache_dir": folder, "local_files_only": True}
    patch.setattr(huggingface_hub, name, lambda *args, **kw: real(*args, **kw, **offline))


def test_video_stages_keep_their_own_weights_prediction(sources, small, tmp_path):
    """T2I's checkpoint may predict v while the video stages' predicts noise, and the reverse."""
    for name, prediction in (("noise", "epsilon"), ("velocity", "v_prediction")):
        shutil.copytree(sources / "pipeline", tmp_path / name)
        (tmp_path / name / "scheduler").mkdir()
        config = tmp_path / name / "scheduler" / "scheduler_config.json"
        config.write_text(json.dumps({"prediction_type": prediction}))
    names = {"noise": "eps", "velocity": "v"}
    for spatial, picture in (("noise", "velocity"), ("velocity", "noise")):
        flags = ["--unet", tmp_path / spatial, "--motion", sources / "motion"]
        out = tmp_path / f"{spatial}-{picture}"
        assert convert(*flags, "--t2i", tmp_path / picture, "-o", out) == 0
        stages = bundle.read(out).stages
        said = [stages[stage].schedule.prediction for stage in ("t2i", "i2v", "v2v")]
        assert said == [names[picture], names[spatial], names[spatial]]


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "bfloat16"])
def test_a_lora_over_coarse_weights_is_not_rounded_away(sources, tmp_path, dtype):
    from safetensors.torch import save_file as save_tensors

    good = load_file(sources / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    coarse = {k: torch.from_numpy(v).to(getattr(torch, dtype)) for k, v in good.items()}
    save_tensors(coarse, tmp_path / "unet.safetensors")
    rng = np.random.default_rng(0)
    down, up = (1e-2 * rng.normal(size=shape) for shape in ((2, 64), (64, 2)))
    stem = f"lora_unet_{Q.replace('.', '_')}"
    halves = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    halves = {name: half.astype(np.float32) for name, half in halves.items()}
    save_file(halves, tmp_path / "lora.safetensors")
    flags = ["--unet", tmp_path / "unet.safetensors", "--lora", tmp_path / "lora.safetensors"]
    for stored in ("float32", "keep"):
        assert convert(*flags, "--dtype", stored, "-o", tmp_path / stored) == 0
        leaves = flatten(bundle.read(tmp_path / stored).load("spatial"))
        (name,) = [k for k in leaves if "down_blocks_0" in k and "attn1/to_q" in k]
        if stored == "float32":
            change = leaves[name].T - coarse[f"{Q}.weight"].float().numpy()
            np.testing.assert_allclose(change, up @ down, rtol=0, atol=1e-7)
        kept = "float16" if dtype.startswith("float8") else dtype  # NumPy reads no float8
        assert leaves[name].dtype.name == ("float32" if stored == "float32" else kept)
