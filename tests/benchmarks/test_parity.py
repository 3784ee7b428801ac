"""The cases of benchmarks/parity.py that run AnimateDiff's own code, as far as that goes without
its checkout."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
UNET = """
import torchvision
from diffusers.configuration_utils import ConfigMixin
from diffusers.modeling_utils import ModelMixin
from diffusers.models.attention import AdaLayerNorm, CrossAttention, FeedForward

from .resnet import NAME


class UNet3DConditionModel(ModelMixin, ConfigMixin):
    attention, name = CrossAttention, NAME
"""
CONFIG = """
unet_additional_kwargs:
  use_inflated_groupnorm: true
  motion_module_kwargs:
    num_attention_heads: 8
    zero_initialize: true
"""


@pytest.fixture
def load(monkeypatch):
    """A module of benchmarks/ by its name; the names there are of no use to other tests."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name in {path.stem for path in FOLDER.glob("*.py")}:
            del sys.modules[name]


@pytest.fixture
def checkout(tmp_path, load):
    """A folder with the files that are asked for, and nearly nothing in them."""
    models = tmp_path / "animatediff" / "models"
    configs = tmp_path / "configs" / "inference"
    for folder in (models, configs):
        folder.mkdir(parents=True)
    for name in ("unet_blocks", "attention", "motion_module"):
        (models / f"{name}.py").touch()
    (models / "resnet.py").write_text("NAME = 'theirs'")
    (models / "unet.py").write_text(UNET)
    for version in load("animatediff").VERSIONS:
        (configs / f"inference-{version}.yaml").write_text(CONFIG)
    return tmp_path


def refusal(load, monkeypatch, capsys, *arguments):
    """What parity.py says as it stops with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["parity.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        load("parity").main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_folder_that_is_no_checkout_is_refused_in_one_line(
    load, checkout, tmp_path, monkeypatch, capsys
):
    for missing in ("animatediff/models/motion_module.py", "configs/inference/inference-v3.yaml"):
        (checkout / missing).unlink()
        said = refusal(load, monkeypatch, capsys, "--animatediff", tmp_path)
        assert said == (
            f"parity.py: {tmp_path} is no checkout of github.com/guoyww/AnimateDiff: "
            f"it has no {missing}\n"
        )
        (checkout / missing).touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = refusal(load, monkeypatch, capsys, "--animatediff", tmp_path)
    assert said == "parity.py: AnimateDiff's code needs einops: pip install einops\n"


def test_its_own_code_is_not_run_without_it(load, monkeypatch, capsys):
    said = refusal(load, monkeypatch, capsys, "video-v1-original")
    assert "--animatediff FOLDER" in said.splitlines()[-1]


def test_what_moved_in_diffusers_is_back_only_while_it_is_imported(load, checkout):
    import diffusers
    from diffusers.models import attention

    module = load("animatediff").network(checkout)
    assert module.name == "theirs" and issubclass(module, diffusers.ModelMixin)
    assert sys.modules["diffusers.models.attention"] is attention
    assert "diffusers.modeling_utils" not in sys.modules
    own = module.attention(query_dim=8, heads=2, dim_head=4)
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    rows = (own.reshape_heads_to_batch_dim(part(x)) for part in (own.to_q, own.to_k, own.to_v))
    torch.testing.assert_close(own.to_out[0](own._attention(*rows)), own(x))


def test_settings_are_its_configs_with_our_heads_and_positions(load, checkout):
    ours = load("animatediff")
    told = ours.settings(checkout, "v2", ours.VERSIONS["v2"])
    assert told["use_inflated_groupnorm"] is True
    assert told["motion_module_kwargs"] == {
        "num_attention_heads": 8,
        "zero_initialize": True,
        "temporal_position_encoding_max_len": 32,
    }
