"""Public interpolators' weights into this package's trees.

    python -m mv2_jax.convert.vfi ours_t.pkl ema.safetensors --any-time
    python -m mv2_jax.convert.vfi vqflow.ckpt gan.safetensors
    python -m mv2_jax.convert.vfi EDSC_m.ckpt edsc.safetensors
    python -m mv2_jax.convert.vfi flownet.pkl rife.safetensors      # RIFE 4.0, 4.25 or 4.26

Which network a file holds, and how large it is, is read from its tensors. Of EMA-VFI nothing in the
file tells the any-time variants (`_t`) from those that know the middle alone, hence the option.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import files, params
from mv2_jax.config import (
    EDSCConfig,
    EMAVFIConfig,
    GANVFIConfig,
    RefinedRIFEConfig,
    RIFEConfig,
    to_dict,
)
from mv2_jax.convert import sources
from mv2_jax.convert.engine import ConversionError, Table, convert, shorten, under
from mv2_jax.convert.tables import edsc, ema_vfi, ldmvfi, rife, rife_refined
from mv2_jax.diffusion import keys as named
from mv2_jax.models.edsc import EDSC, PAD_TO
from mv2_jax.models.ema_vfi import EMAVFI
from mv2_jax.models.gan_vfi import GANVFI
from mv2_jax.models.rife import RIFE
from mv2_jax.models.rife_refined import RefinedRIFE

Config = EMAVFIConfig | EDSCConfig | GANVFIConfig | RIFEConfig | RefinedRIFEConfig


def load(
    path: str | os.PathLike[str], *, any_time: bool = False, dtype: Any = None
) -> tuple[params.Tree, Config]:
    """The tree and config of a public file, in `dtype` or as stored.

    Raises:
        FileNotFoundError, ValueError: no such file, a damaged one, or none of the networks here.
    """
    source = sources.load(path)
    table, cfg = recognise(source, any_time=any_time)
    return convert(source, table, target(cfg), dtype=dtype), cfg


def recognise(source: Mapping[str, Any], *, any_time: bool = False) -> tuple[Table, Config]:
    """The table and config for tensors of these names and shapes.

    Raises:
        ConversionError: no network that is known here.
    """
    for prefix in ("module.", ""):
        if f"{prefix}feature_bone.block1.conv.0.weight" in source:
            return ema_vfi.rules(prefix), _ema(source, prefix, any_time)
    for prefix in ("", "first_stage_model."):
        if f"{prefix}decoder.moduleAlpha1.0.weight" in source:
            return ldmvfi.rules(prefix), _ldmvfi(source, prefix)
    for prefix in ("", "model_state."):
        if f"{prefix}moduleConv1.0.weight" in source:
            return edsc.rules(prefix), _edsc(source, prefix)
    for prefix in ("", "module."):
        if f"{prefix}contextnet.conv1.conv1.0.weight" in source:
            return rife_refined.rules(prefix), RefinedRIFEConfig()
        if f"{prefix}encode.cnn0.weight" in source:
            return under(rife.rules(), prefix), RIFEConfig()
    raise ConversionError(
        "neither EMA-VFI nor EDSC nor LDMVFI's VQ-FIGAN nor RIFE 4.0, 4.25 or 4.26; it holds "
        + ", ".join(shorten(source, limit=4))
    )


def target(cfg: Config) -> params.Tree:
    """The shapes of a network's tree."""
    side = PAD_TO if isinstance(cfg, EDSCConfig) else cfg.pad_to
    frame = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    if isinstance(cfg, GANVFIConfig):
        time = jax.ShapeDtypeStruct((1,), jnp.float32)
        model, given = GANVFI(cfg), (frame, frame, frame, time)
    else:
        networks = {
            EMAVFIConfig: EMAVFI,
            EDSCConfig: EDSC,
            RIFEConfig: RIFE,
            RefinedRIFEConfig: RefinedRIFE,
        }
        model = networks[type(cfg)](cfg)
        given = (frame, frame, jax.ShapeDtypeStruct((1, 1), jnp.float32))
    return jax.eval_shape(model.init, named.seed(0), *given)["params"]


def _ema(source: Mapping[str, Any], prefix: str, any_time: bool) -> EMAVFIConfig:
    root = f"{prefix}feature_bone."
    width = source[f"{root}block1.conv.0.weight"].shape[0]
    # A convolution and a PReLU for each layer of the first stages; later ones number their blocks.
    depths = [_count(source, f"{root}block{stage}.conv.") // 2 for stage in (1, 2, 3)]
    depths += [_count(source, f"{root}block{stage}.") for stage in (4, 5)]
    return EMAVFIConfig(width=width, depths=tuple(depths), any_time=any_time)


def _edsc(source: Mapping[str, Any], prefix: str) -> EDSCConfig:
    widths = [source[f"{prefix}moduleConv1.0.weight"].shape[0]]
    while (name := f"{prefix}moduleConv{len(widths) + 1}.0.conv1x1.weight") in source:
        widths.append(source[name].shape[0])
    # Weights for any time read it beside the features.
    seen = source[f"{prefix}moduleMask1.0.weight"].shape[1]
    return EDSCConfig(tuple(widths), any_time=seen == widths[1] + 1)


def _ldmvfi(source: Mapping[str, Any], prefix: str) -> GANVFIConfig:
    def outputs(name: str) -> int:
        return source[prefix + name].shape[0]

    width = outputs("encoder.conv_in.weight")
    levels = _count(source, f"{prefix}encoder.down.")
    widths = [outputs(f"encoder.down.{i}.downsample.conv.weight") for i in range(levels)]
    codes, code_width = source[f"{prefix}quantize.embedding.weight"].shape
    return replace(
        GANVFIConfig.ldmvfi(),
        width=width,
        multipliers=tuple(w // width for w in widths),
        z_channels=outputs("encoder.conv_out.weight"),
        codes=codes,
        code_width=code_width,
        taps=outputs("decoder.moduleKernelVertical1.6.weight"),
        head_widths=tuple(outputs(f"decoder.moduleMask.{i}.weight") for i in (0, 2)),
    )


def _count(source: Mapping[str, Any], start: str) -> int:
    """How many numbers follow `start` in the names."""
    return len({name[len(start) :].split(".")[0] for name in source if name.startswith(start)})


def main(arguments: Sequence[str]) -> int:
    """Converts one file in half precision; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mv2_jax.convert.vfi")
    parser.add_argument("source", help="the public file: .pkl, .ckpt, .pth or .safetensors")
    parser.add_argument("out", help="the safetensors file to write")
    parser.add_argument("--any-time", action="store_true", help="EMA-VFI's `_t` variants")
    asked = parser.parse_args(arguments)
    try:
        tree, cfg = load(asked.source, any_time=asked.any_time, dtype=np.float16)
        metadata = {"config": to_dict(cfg), "source_sha256": files.sha256(asked.source)}
        params.save(asked.out, tree, metadata)
    except (OSError, ValueError) as error:
        print(f"mv2_jax.convert.vfi: {error}", file=sys.stderr)
        return 2
    name = type(cfg).__name__.removesuffix("Config")
    print(f"{asked.out}: {name}, {params.count(tree):,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
