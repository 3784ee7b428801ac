"""Public interpolators' weights into this package's trees.

    mv2 convert ours_t.pkl -o ema.safetensors --any-time
    mv2 convert vqflow.ckpt -o gan.safetensors
    mv2 convert EDSC_m.ckpt -o edsc.safetensors
    mv2 convert flownet.pkl -o rife.safetensors      # RIFE 4.0, 4.25 or 4.26

(`python -m mv2_jax.convert.vfi SOURCE OUT` does the same.)

Which network a file holds, and how large it is, is read from its tensors. Of EMA-VFI nothing in the
file tells the any-time variants (`_t`) from those that know the middle alone, hence the option.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
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
from mv2_jax.convert import hub, sources
from mv2_jax.convert.engine import ConversionError, Table, convert, shorten, under
from mv2_jax.convert.tables import edsc, ema_vfi, ldmvfi, rife, rife_refined
from mv2_jax.diffusion import keys
from mv2_jax.errors import InputError
from mv2_jax.models.edsc import PAD_TO
from mv2_jax.stages import vfi_table

Config = EMAVFIConfig | EDSCConfig | GANVFIConfig | RIFEConfig | RefinedRIFEConfig


def load(
    path: str | os.PathLike[str],
    *,
    any_time: bool = False,
    dtype: Any = None,
    own: str | None = None,
) -> tuple[params.Tree, Config]:
    """The tree and config of a public file, in `dtype` or as stored.

    `own` is an interpolator from outside the package, `module:NAME`, whose file it is.

    Raises:
        FileNotFoundError, ValueError: no such file, a damaged one, or none of the networks here.
    """
    source = sources.load(path)
    table, cfg = recognise(source, any_time=any_time, own=own)
    return convert(source, table, target(cfg), dtype=dtype), cfg


def recognise(
    source: Mapping[str, Any], *, any_time: bool = False, own: str | None = None
) -> tuple[Table, Config]:
    """The table and config for tensors of these names and shapes, by `stages.vfi_table`.

    Raises:
        ConversionError: no network that is known here.
    """
    kinds = [*vfi_table.TABLE.values()] if own is None else [vfi_table.named(own)]
    for kind in kinds:
        how = kind.part("recognise")
        found = how(source, any_time) if how else None
        if found:
            return found
    if own is not None:
        raise ConversionError(
            f"no weights of {own}; it holds {', '.join(shorten(source, limit=4))}"
        )
    raise ConversionError(
        "neither EMA-VFI nor EDSC nor LDMVFI's VQ-FIGAN nor RIFE 4.0, 4.25 or 4.26; it holds "
        + ", ".join(shorten(source, limit=4))
    )


def _begun(source: Mapping[str, Any], first: str, *prefixes: str) -> str | None:
    """The prefix with which a tensor `first` is there; None where there is none."""
    return next((prefix for prefix in prefixes if prefix + first in source), None)


def recognise_ema(source: Mapping[str, Any], any_time: bool) -> tuple[Table, Config] | None:
    """EMA-VFI's tensors."""
    prefix = _begun(source, "feature_bone.block1.conv.0.weight", "module.", "")
    if prefix is not None:
        return ema_vfi.rules(prefix), _ema(source, prefix, any_time)
    return None


def recognise_ldmvfi(source: Mapping[str, Any], any_time: bool) -> tuple[Table, Config] | None:
    """Those of LDMVFI's VQ-FIGAN."""
    prefix = _begun(source, "decoder.moduleAlpha1.0.weight", "", "first_stage_model.")
    return None if prefix is None else (ldmvfi.rules(prefix), _ldmvfi(source, prefix))


def recognise_edsc(source: Mapping[str, Any], any_time: bool) -> tuple[Table, Config] | None:
    """EDSC's."""
    prefix = _begun(source, "moduleConv1.0.weight", "", "model_state.")
    return None if prefix is None else (edsc.rules(prefix), _edsc(source, prefix))


def recognise_refined(source: Mapping[str, Any], any_time: bool) -> tuple[Table, Config] | None:
    """RIFE 4.0's, with its refinement networks."""
    prefix = _begun(source, "contextnet.conv1.conv1.0.weight", "", "module.")
    return None if prefix is None else (rife_refined.rules(prefix), RefinedRIFEConfig())


def recognise_rife(source: Mapping[str, Any], any_time: bool) -> tuple[Table, Config] | None:
    """RIFE 4.25's or 4.26's."""
    prefix = _begun(source, "encode.cnn0.weight", "", "module.")
    return None if prefix is None else (under(rife.rules(), prefix), RIFEConfig())


def target(cfg: Config) -> params.Tree:
    """The shapes of a network's tree."""
    side = PAD_TO if isinstance(cfg, EDSCConfig) else cfg.pad_to
    frame = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    if isinstance(cfg, GANVFIConfig):
        given = (frame, frame, frame, jax.ShapeDtypeStruct((1,), jnp.float32))
    else:
        given = (frame, frame, jax.ShapeDtypeStruct((1, 1), jnp.float32))
    model = vfi_table.of(cfg).part("network")(cfg)
    return jax.eval_shape(model.init, keys.seed(0), *given)["params"]


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


def write(
    source: str,
    out: Path,
    *,
    any_time: bool = False,
    dtype: str = "float16",
    own: str | None = None,
) -> str:
    """Converts one file into what `--vfi FILE` takes; returns a line on it. `own` as of `load`.

    Raises:
        InputError: no interpolator in it, or `out` is no new .safetensors file.
        OSError: it cannot be written.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"-o {out}: an interpolator becomes one file; call it {out}.safetensors")
    if out.exists():
        raise InputError(f"{out} already exists; choose another name or remove it")
    path = hub.local(source)
    kept = None if dtype == "keep" else np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    try:
        tree, cfg = load(path, any_time=any_time, dtype=kept, own=own)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None
    params.save(out, tree, {"config": to_dict(cfg), "source_sha256": files.sha256(path)})
    name = type(cfg).__name__.removesuffix("Config")
    return f"{out}: {name}, {params.count(tree):,} parameters; for --vfi"


def main(arguments: Sequence[str]) -> int:
    """Converts one file in half precision; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mv2_jax.convert.vfi")
    parser.add_argument("source", help="the public file: .pkl, .ckpt, .pth or .safetensors")
    parser.add_argument("out", help="the safetensors file to write")
    parser.add_argument("--any-time", action="store_true", help="EMA-VFI's `_t` variants")
    parser.add_argument("--interpolator", metavar="module:NAME", help="one from elsewhere")
    asked = parser.parse_args(arguments)
    own = {"any_time": asked.any_time, "own": asked.interpolator}
    try:
        tree, cfg = load(asked.source, dtype=np.float16, **own)
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
