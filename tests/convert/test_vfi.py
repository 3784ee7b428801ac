"""Interpolators' files recognised and converted, in the public names and layouts."""

from dataclasses import replace

import numpy as np
import pytest

from mv2_jax import params
from mv2_jax.config import EDSCConfig, EMAVFIConfig, GANVFIConfig, RefinedRIFEConfig, RIFEConfig
from mv2_jax.convert import vfi
from mv2_jax.convert.engine import export
from mv2_jax.convert.tables import edsc, ema_vfi, ldmvfi, rife, rife_refined

torch = pytest.importorskip("torch")

EMA = EMAVFIConfig(width=4, depths=(2, 1, 1, 1, 2), any_time=False)
EDSC = EDSCConfig(widths=(4, 8, 12))
FIGAN = GANVFIConfig.ldmvfi(width=32, multipliers=(1, 3), codes=7, z_channels=4, code_width=2)


def tree(cfg):
    random = np.random.default_rng(0)
    flat = params.flatten(vfi.target(cfg))
    return params.unflatten({k: np.float16(random.normal(size=v.shape)) for k, v in flat.items()})


@pytest.mark.parametrize(
    "cfg, table, prefix, options",
    [
        (EMA, ema_vfi, "module.", []),
        (replace(EMA, any_time=True), ema_vfi, "", ["--any-time"]),
        (FIGAN, ldmvfi, "", []),
        (FIGAN, ldmvfi, "first_stage_model.", []),
        (EDSC, edsc, None, []),
        (replace(EDSC, any_time=False), edsc, None, []),
        (RefinedRIFEConfig(), rife_refined, "module.", []),
        (RIFEConfig(), rife, None, []),
    ],
)
def test_a_public_file_becomes_the_tree_and_its_config(tmp_path, cfg, table, prefix, options):
    given = tree(cfg)
    rules = table.rules() if prefix is None else table.rules(prefix)
    named = {k: torch.tensor(v) for k, v in export(given, rules).items()}
    source, out = tmp_path / "public.ckpt", tmp_path / "out.safetensors"
    outer = {ldmvfi: "state_dict", edsc: "model_state"}.get(table)
    torch.save({outer: named} if outer else named, source)
    _, found = vfi.load(source, any_time=bool(options))
    assert found == cfg
    assert vfi.main([str(source), str(out), *options]) == 0
    assert params.digest(params.load(out)) == params.digest(given)


def test_another_network_is_named_in_one_line(tmp_path, capsys):
    source = tmp_path / "other.pkl"
    torch.save({"layer.weight": torch.zeros(2)}, source)
    assert vfi.main([str(source), str(tmp_path / "out.safetensors")]) == 2
    said = capsys.readouterr().err
    assert "neither EMA-VFI nor EDSC nor LDMVFI" in said and "layer.weight" in said
    assert not (tmp_path / "out.safetensors").exists()
