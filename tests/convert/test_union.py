"""ControlNet Union from its publisher's folder to a cascade and back."""

import numpy as np
import pytest
from converting import convert, refused

from mv2_jax import bundle, cli

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(sources, small, tmp_path_factory):
    root = tmp_path_factory.mktemp("union")
    small.union().save_pretrained(root / "union")
    flags = ["--unet", sources / "pipeline", "--motion", sources / "motion", "--controlnet"]
    assert convert(*flags, root / "union", "-o", root / "made") == 0
    return root


def test_it_is_recognised_and_the_same_as_diffusers(folder, capsys):
    net = bundle.read(folder / "made").config("control")
    assert (net.types, net.type_layers) == (8, 1)
    assert cli.main(["verify", str(folder / "made"), "--component", "control"]) == 0
    assert "the same as diffusers' ControlNetUnionModel" in capsys.readouterr().out


def test_it_goes_back_as_it_came(folder, small):
    from safetensors.numpy import load_file

    assert cli.main(["export", str(folder / "made"), "control", "-o", str(folder / "back")]) == 0
    (file,) = (folder / "back").rglob("*.safetensors")
    back, came = load_file(file), small.union().state_dict()
    assert back.keys() == came.keys()
    for name, array in back.items():
        np.testing.assert_allclose(array, came[name], atol=2e-3, err_msg=name)  # float16


def test_an_unknown_kind_is_named(capsys):
    assert cli.main(["generate", "a red ball", "--control-type", "scribbles"]) == 2
    assert "--control-type: unknown 'scribbles'" in capsys.readouterr().err


def test_a_union_that_says_otherwise_is_refused(folder, sources, tmp_path, capsys):
    from safetensors.numpy import load_file, save_file

    (tmp_path / "torn").mkdir()
    held = load_file(folder / "union" / "diffusion_pytorch_model.safetensors")
    held["task_embedding"] = held["task_embedding"][:3]
    save_file(held, tmp_path / "torn.safetensors")
    flags = ("--unet", sources / "pipeline", "-o", tmp_path / "made", "--controlnet")
    assert "told of 3 kinds" in refused(capsys, *flags, tmp_path / "torn.safetensors")
