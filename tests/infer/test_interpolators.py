"""Interpolators by name, in cascade folders and files, and from there into the cascade."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mv2_jax import bundle, cascade, cli, components
from mv2_jax import params as trees
from mv2_jax.config import (
    EDSCConfig,
    EMAVFIConfig,
    GANVFIConfig,
    RefinedRIFEConfig,
    RIFEConfig,
    to_dict,
)
from mv2_jax.config_vfi import MeanVFIConfig
from mv2_jax.errors import InputError
from mv2_jax.infer import choices, interpolators
from mv2_jax.programs import Programs
from mv2_jax.stages import vfi, vfi_gan, vfi_table

EMA = EMAVFIConfig(width=4, depths=(1, 1, 1, 1, 1), any_time=False)
GAN = GANVFIConfig(
    width=8, multipliers=(1,), z_channels=2, codes=4, code_width=2, norm_groups=4, window=4,
    head_width=8, taps=3, head_widths=(4,), time_width=4,
)  # fmt: skip


def save(path, cfg, held=None):
    """A file of weights; what is in it matters only where a network runs."""
    trees.save(path, held or {"w": np.ones(3, np.float16)}, {"config": to_dict(cfg)})
    return str(path)


@pytest.fixture
def folder(tmp_path, tiny_weights):
    """A cascade folder that holds a GAN interpolator, without its light model."""
    made = bundle.read(tiny_weights)
    parts = {
        name: bundle.Part(made.load(name), c.config, c.licence, c.source)
        for name, c in made.components.items()
    }
    gan = {"gan": {"w": np.ones(3, np.float16)}}
    parts["vfi_gan"] = bundle.Part(gan, GAN, "Apache-2.0", "random numbers")
    return bundle.write(tmp_path / "own", parts, made.stages, made.tokenizer, name="own")


def test_a_folder_s_own_interpolator_serves_and_gets_its_light_model(folder, tiny_weights):
    for held, cfg in (components.own_interpolator(folder), interpolators.load("gan", folder)):
        assert cfg == GAN and set(held) == {"light", "gan"}
        assert trees.digest(held["light"]) == trees.digest(vfi.shipped()[0])
    assert interpolators.load("rife", folder)[1] == RIFEConfig()
    assert components.own_interpolator(bundle.read(tiny_weights))[1] == RIFEConfig()
    assert choices.apply(folder, {"vfi": {"network": "gan"}}).stages["vfi"] == {"network": "gan"}
    with pytest.raises(InputError, match=r"--vfi ema: .*own holds no such weights"):
        choices.apply(folder, {"vfi": {"network": "ema"}})


def test_the_cascade_fills_gaps_with_whatever_it_is_given(monkeypatch):
    def repeat(params, cfg, frames, times, dtype):
        return frames.repeat(times, axis=1)[:, times - 1 :] * params["w"]

    own = vfi_table.Interpolator(EDSCConfig, "unused:between", fill=repeat)
    monkeypatch.setitem(vfi_table.TABLE, "edsc", own)
    four = SimpleNamespace(
        params={"interpolator": {"w": np.float32(2)}},
        interpolator=EDSCConfig(),
        programs=Programs(),
        dtype=np.float32,
    )
    frames = np.ones((1, 3, 4, 4, 3), np.float32)
    made = np.asarray(cascade.Cascade.vfi(four, frames, 3))
    assert made.shape == (1, 7, 4, 4, 3) and (made == 2).all()


def test_what_is_not_there_is_said_with_the_way_to_it():
    for name, how in (("ema", "mv2 convert ours_t.pkl -o"), ("gan", "mv2 train toybox/vfi")):
        if interpolators._HELD[name] in bundle.read().components:
            continue
        with pytest.raises(InputError, match=f"--vfi {name}: .* holds no such weights; .*{how}"):
            interpolators.check(name)
    with pytest.raises(InputError, match="none is no network"):
        interpolators.check("rife+none")
    with pytest.raises(InputError, match="did you mean 'rife'"):
        interpolators.check("rife+rive")


def test_the_best_is_the_mean_of_both_that_ship():
    assert interpolators.parts("best") == ["rife", "rife40"]
    assert interpolators.check("best") == "best"
    held, cfg = interpolators.load("best")
    assert (
        cfg == interpolators.described("best") == MeanVFIConfig((RIFEConfig(), RefinedRIFEConfig()))
    )
    for tree, member in zip((held["0"], held["1"]), cfg.members):
        net = vfi_table.of(member).part("network")(member, np.float32)
        x, t = np.zeros((1, 128, 128, 3), np.float32), np.zeros((1, 1), np.float32)
        wanted = jax.eval_shape(lambda: net.init(jax.random.key(0), x, x, t))["params"]  # noqa: B023
        assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, wanted)


def test_converted_files_are_ready_for_use(tmp_path):
    for cfg in (GANVFIConfig.ldmvfi(), EDSCConfig(), EMA):
        path = save(tmp_path / "net.safetensors", cfg)
        held, found = interpolators.load(interpolators.check(path))
        assert found == cfg
        assert ("light" in held) == isinstance(cfg, GANVFIConfig)
    (tmp_path / "ours_t.pkl").touch()
    with pytest.raises(InputError, match=r"PyTorch's; .*mv2 convert .*-o .*ours_t.safetensors"):
        interpolators.described(str(tmp_path / "ours_t.pkl"))
    interpolators.fits(path, 4, "")
    with pytest.raises(InputError, match=r"knows the middle .* alone; use --between 1"):
        interpolators.fits(path, 3, "--between 1")
    both, cfg = interpolators.load(f"rife+{path}")
    assert cfg == MeanVFIConfig((RIFEConfig(), EMA)) and set(both) == {"0", "1"}
    assert not cfg.any_time
    with pytest.raises(ValueError, match="its light model, a EMAVFI, is missing"):
        vfi_gan.complete({}, GANVFIConfig(light=EMA))


def test_a_file_makes_the_frames_and_its_change_is_noticed(
    tiny_weights, fake_cascade, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "net.safetensors", RIFEConfig())
    words = ["generate", "a red ball", "--weights", str(tiny_weights)]
    assert cli.main([*words, "--vfi", "net.safetensors"]) == 0
    side = json.loads((tmp_path / "out.json").read_text())
    assert side["choices"]["vfi"] == {"network": path}
    assert len(side["weights"]["interpolators"][path]) == 64
    capsys.readouterr()
    assert cli.main(["generate", "--from", "out.json"]) == 0
    assert "has changed" not in capsys.readouterr().err
    save(tmp_path / "net.safetensors", EMA)
    assert cli.main(["generate", "--from", "out.json"]) == 2
    assert "knows the middle between two frames alone" in capsys.readouterr().err
    assert cli.main(["generate", "--from", "out.json", "--between", "1"]) == 0
    shutil.copy(save(tmp_path / "other.safetensors", RIFEConfig(), {"v": np.zeros(1)}), path)
    assert cli.main(["generate", "--from", "out.json"]) == 0
    assert "net.safetensors has changed since" in capsys.readouterr().err
    assert cli.main([*words, "--vfi", "rife+net.safetensors", "-o", "both.mp4"]) == 0
    side = json.loads((tmp_path / "both.json").read_text())
    assert side["choices"]["vfi"] == {"network": f"rife+{path}"}
    assert list(side["weights"]["interpolators"]) == [path]
    capsys.readouterr()
    for name, says in (("lost.safetensors", "no such file"), ("gan", "holds no such weights")):
        assert cli.main([*words, "--vfi", name]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
