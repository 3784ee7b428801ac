"""`mv2 verify` finds a converted cascade the same as its sources in PyTorch, and tells when not."""

import json
import shutil

import numpy as np
import pytest
from converting import convert
from safetensors.numpy import load_file, save_file

from mv2_jax import bundle, cli, files, params
from mv2_jax.convert import verify

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")


def test_verdicts():
    ours, theirs = np.float32([1.0, 2.0, -4.0]), np.float32([1.0, 2.0, -4.0004])
    verdict = verify.apart("x", "y", [(ours, ours), (ours, theirs)])
    assert not verdict.same and abs(verdict.largest - 1e-4) < 1e-6
    assert verify.apart("x", "y", [(ours, ours)]).same
    broken = [(ours, ours), (ours * np.nan, ours)]
    assert not verify.apart("x", "y", broken).same
    assert not verify.apart("x", "y", broken[::-1]).same


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory):
    root = tmp_path_factory.mktemp("verified")
    rng = np.random.default_rng(0)
    down, up = (rng.normal(size=(4, width)).astype(np.float32) for width in (32, 64))
    stem = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"
    lora = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": np.ascontiguousarray(up.T)}
    save_file(lora, root / "style.safetensors")
    flags = {"unet": "pipeline", "motion": "motion", "image-adapter": "adapter.safetensors"}
    flags |= {"image-encoder": "vision", "controlnet": "controlnet"}
    words = [str(w) for name, path in flags.items() for w in (f"--{name}", sources / path)]
    sizes = "--t2i-size 16x16 --i2v-size 16x16 --v2v-size 16x16 --frames 2".split()
    words += ["--lora", f"{root / 'style.safetensors'}:0.5", "-o", str(root / "cascade")]
    assert cli.main(["convert", *words, *sizes]) == 0
    return root / "cascade"


@pytest.mark.slow
def test_every_component_is_the_same(whole, capsys):
    assert cli.main(["verify", str(whole)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 8 + 3 and all("the same as" in line for line in lines)
    for line in lines:
        assert float(line.split()[1]) < 5e-6, line


@pytest.mark.slow
def test_an_animatediff_pipeline_is_a_unet_and_its_modules(sources, small, tmp_path, capsys):
    """`AnimateDiffPipeline.save_pretrained` keeps both as one UNetMotionModel."""
    import diffusers

    both = diffusers.UNetMotionModel.from_unet2d(small.unet(), small.motion())
    folder = tmp_path / "animated"
    both.save_pretrained(folder / "unet")
    for part in ("vae", "text_encoder"):
        shutil.copytree(sources / "pipeline" / part, folder / part)
    diffusers.DDIMScheduler(beta_schedule="linear").save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"scheduler": ["x", "DDIMScheduler"]}))
    apart = ["--unet", sources / "pipeline", "--motion", sources / "motion"]
    assert convert(*apart, "-o", tmp_path / "apart") == 0
    assert convert("--unet", folder, "-o", tmp_path / "one") == 0
    first, second = bundle.read(tmp_path / "apart"), bundle.read(tmp_path / "one")
    assert first.spatial == second.spatial and first.stages == second.stages
    assert first.config("motion_i2v") == second.config("motion_i2v")
    held, other = (params.flatten(made.load("motion_i2v")) for made in (first, second))
    assert held.keys() == other.keys()
    for name, array in held.items():
        np.testing.assert_array_equal(array, other[name])
    capsys.readouterr()
    assert cli.main(["verify", str(tmp_path / "one")]) == 0
    assert "DIFFERENT" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_converted_cascade_makes_a_video(whole, tmp_path):
    steps = "--t2i-steps 1 --i2v-steps 1 --v2v-steps 1 --between 1".split()
    out = tmp_path / "v.mp4"
    words = ["a lighthouse in a storm, oil painting", "--weights", str(whole), "-o", str(out)]
    assert cli.main(["generate", *words, *steps]) == 0
    side = json.loads(out.with_suffix(".json").read_text())
    assert side["result"]["frames"] == 3 and out.stat().st_size > 500


def test_a_difference_is_found(whole, tmp_path, capsys):
    """One attention head's weights changed in the folder, its checksum made right again."""
    folder = tmp_path / "cascade"
    shutil.copytree(whole, folder)
    path = folder / "text_encoder.safetensors"
    leaves = load_file(path)
    name = "encoder/layers_1/self_attn/v_proj/kernel"
    leaves[name] = leaves[name] * np.float16(1.01)
    save_file(leaves, path)
    index = json.loads((folder / bundle.INDEX).read_text())
    entry = index["components"]["text_encoder"]
    entry |= {"sha256": files.sha256(path), "bytes": path.stat().st_size}
    (folder / bundle.INDEX).write_text(json.dumps(index))
    assert cli.main(["verify", str(folder), "--component", "text_encoder"]) == 1
    assert "DIFFERENT from transformers' CLIP" in capsys.readouterr().out


def test_sources_that_changed_or_went_are_named(whole, tmp_path, capsys):
    folder = tmp_path / "cascade"
    shutil.copytree(whole, folder)
    origins = json.loads((folder / "sources.json").read_text())
    for change, text in (
        ({"sha256": {}}, "has changed since; convert it again"),
        ({"path": str(tmp_path / "no.safetensors")}, "no.safetensors is gone"),
    ):
        edited = {**origins, "vae": {**origins["vae"], **change}}
        (folder / "sources.json").write_text(json.dumps(edited))
        assert cli.main(["verify", str(folder)]) == 2
        assert text in capsys.readouterr().err
    assert cli.main(["verify", str(bundle.SHIPPED)]) == 2
    assert "was not made by mv2 convert" in capsys.readouterr().err


@pytest.mark.slow
def test_what_users_say_at_conversion_is_no_difference(sources, small, whole, tmp_path, capsys):
    """A marked SDXL file for T2I, a LoRA for the frames alone, overrides, few steps, a vfi."""
    from mv2_jax.convert import ldm
    from mv2_jax.convert.engine import export
    from mv2_jax.convert.tables import rife
    from mv2_jax.stages import vfi

    state = small.sdxl_file(small.sdxl(), small.as_ldm, ldm.unet_modules(2, 1))
    state = {name: np.ascontiguousarray(value) for name, value in state.items()}
    state |= {name: np.zeros(0, np.float32) for name in ("v_pred", "ztsnr")}
    save_file(state, tmp_path / "noob.safetensors")
    named = export(vfi.shipped()[0], rife.rules())
    torch.save({k: torch.tensor(np.array(v)) for k, v in named.items()}, tmp_path / "flownet.pkl")
    style = whole.parent / "style.safetensors"
    base = ["--unet", sources / "pipeline", "--motion", sources / "motion", "--frames", "2"]
    sizes = "--t2i-size 16x16 --i2v-size 16x16 --v2v-size 16x16".split()
    for k, (more, lines) in enumerate(
        (
            (["--t2i", tmp_path / "noob.safetensors", "--vfi", tmp_path / "flownet.pkl"], 13),
            (["--lora", f"{style}:0.5@i2v,v2v", "--prediction", "v", "--schedule", "ztsnr"], 10),
            (["--norm-scope", "clip", "--few-steps", "lightning", "--dtype", "keep"], 8),
        )
    ):
        out = tmp_path / f"c{k}"
        assert cli.main(["convert", *map(str, [*base, *more, "-o", out]), *sizes]) == 0
        capsys.readouterr()
        assert cli.main(["verify", str(out)]) == 0, capsys.readouterr().out
        said = capsys.readouterr().out.splitlines()[1:]
        assert len(said) == lines and not [line for line in said if "DIFFERENT" in line], said
