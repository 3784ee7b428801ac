"""`mv2 export`: a component of a cascade, back in the layout of PyTorch's libraries.

Networks become folders that diffusers or transformers load with `from_pretrained`; an IP-Adapter
becomes the one file that `load_ip_adapter` takes. What is exported converts back bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mv2_jax import bundle as bundles
from mv2_jax import files, tensorfile
from mv2_jax.config import SparseControlConfig, nearest
from mv2_jax.convert import cli, published
from mv2_jax.convert.engine import ConversionError, Table, exported, under
from mv2_jax.convert.tables import (
    clip,
    controlnet,
    ip_adapter,
    ip_attention,
    motion,
    sparse_control,
    unet,
    vae,
)
from mv2_jax.errors import InputError
from mv2_jax.params import flatten
from mv2_jax.tensorfile import Spec

_DIFFUSERS, _TRANSFORMERS = "diffusion_pytorch_model.safetensors", "model.safetensors"
_VERSION = "0.38.0"  # the oldest diffusers that this layout was read with


class Layout(NamedTuple):
    """How a component is published: its table, its file, and its config.json, if it has one."""

    table: Table
    file: str
    settings: dict[str, Any] | None


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 export`; returns the exit code.

    Raises:
        InputError: no such component, or one that those libraries have no network for.
        OSError: the output cannot be written.
    """
    args = _parser().parse_args(list(arguments))
    bundle = bundles.read(args.folder)
    out = Path(args.out)
    write(bundle, args.component, out)
    config = bundle.config(args.component)
    print(f"{out}: {args.component} of {bundle.name}, as {_what(bundle, args.component)}")
    moving = config.unet.motion if isinstance(config, SparseControlConfig) else config
    if getattr(moving, "norm_scope", "clip") == "frame":
        print("note: these weights want norms over each frame; diffusers takes whole clips")
    return 0


def write(bundle: bundles.Bundle, name: str, out: Path) -> None:
    """Writes a component, which appears whole or not at all.

    Args:
        out: the folder to make; of an IP-Adapter, the file.

    Raises:
        InputError: `out` exists, or PyTorch's libraries have no such network.
        OSError: it cannot be written.
    """
    layout = _layout(bundle, name)
    if out.exists():
        raise InputError(f"{out} already exists; choose another name or remove it")
    leaves = flatten(bundle.load(name))
    try:
        specs = {key: spec for key, spec, _ in _tensors(leaves, layout.table, hollow=True)}
        tensors = ((key, array) for key, _, array in _tensors(leaves, layout.table))
        with files.whole(out) as scratch:
            if layout.settings is None:
                tensorfile.write(scratch, specs, tensors, {"format": "pt"})
                return
            scratch.mkdir()
            tensorfile.write(scratch / layout.file, specs, tensors, {"format": "pt"})
            text = json.dumps(layout.settings, indent=2, sort_keys=True) + "\n"
            (scratch / "config.json").write_text(text, encoding="utf-8")
    except ConversionError as error:
        raise InputError(f"{name}: {error}") from None


def _tensors(
    leaves: dict[str, np.ndarray], table: Table, *, hollow: bool = False
) -> Iterator[tuple[str, Spec, np.ndarray]]:
    """(name, shape and type, array) of every tensor; `hollow` ones cost no memory."""
    for key, (rule, names) in exported(leaves, table).items():
        parts = [leaves[name] for name in names]
        if hollow:
            parts = [np.broadcast_to(np.zeros((), x.dtype), x.shape) for x in parts]
        try:
            array = rule.operation.backward(*parts)
        except ValueError as error:
            raise ConversionError(f"{key}: {error}") from None
        yield key, Spec(array.shape, array.dtype), array


def _layout(bundle: bundles.Bundle, name: str) -> Layout:
    config = bundle.config(name)
    if name not in _LAYOUTS:
        raise InputError(
            f"PyTorch's libraries have no network for {name}; exported are "
            f"{', '.join(_LAYOUTS)}{nearest(name, _LAYOUTS)}"
        )
    try:
        return _LAYOUTS[name](bundle, config)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _diffusers(table: Table, settings: published.Published) -> Layout:
    name, values = settings
    values = {"_class_name": name, "_diffusers_version": _VERSION, **values}
    return Layout(table, _DIFFUSERS, values)


def _transformers(table: Table, settings: published.Published, kind: str) -> Layout:
    name, values = settings
    return Layout(table, _TRANSFORMERS, {"architectures": [name], "model_type": kind, **values})


def _unet(bundle: bundles.Bundle, cfg: Any) -> Layout:
    return _diffusers(unet.rules(cfg), published.unet(cfg))


def _motion(bundle: bundles.Bundle, cfg: Any) -> Layout:
    settings = published.motion(cfg, bundle.config("spatial"))
    return _diffusers(motion.diffusers(cfg.attentions), settings)


def _text(bundle: bundles.Bundle, cfg: Any) -> Layout:
    table = clip.transformers_text("text_model.")
    return _transformers(table, published.text(cfg), "clip_text_model")


def _vision(bundle: bundles.Bundle, cfg: Any) -> Layout:
    table = clip.transformers_vision("vision_model.")
    return _transformers(table, published.vision(cfg), "clip_vision_model")


def _adapter(bundle: bundles.Bundle, cfg: Any) -> Layout:
    kinds = {"linear": ip_adapter.original_linear, "resampler": ip_adapter.original_resampler}
    spatial = dataclasses.replace(bundle.config("spatial"), image_tokens=True)
    table = [
        *under(kinds[cfg.kind](), "image_proj.", "projection/"),
        *under(ip_attention.rules(spatial), target="unet/"),
    ]
    return Layout(table, "", None)


def _control(bundle: bundles.Bundle, cfg: Any) -> Layout:
    if isinstance(cfg, SparseControlConfig):
        return _diffusers(sparse_control.diffusers(cfg), published.sparse_control(cfg))
    return _diffusers(controlnet.rules(cfg), published.controlnet(cfg))


_LAYOUTS: dict[str, Callable[[bundles.Bundle, Any], Layout]] = {
    "spatial": _unet,
    "t2i_unet": _unet,
    "vae": lambda bundle, cfg: _diffusers(vae.rules(), published.vae(cfg)),
    "t2i_vae": lambda bundle, cfg: _diffusers(vae.rules(), published.vae(cfg)),
    "text_encoder": _text,
    "text_encoder_2": _text,
    "t2i_text_encoder": _text,
    "t2i_text_encoder_2": _text,
    "image_encoder": _vision,
    "motion_i2v": _motion,
    "motion_v2v": _motion,
    "image_attn": _adapter,
    "control": _control,
}


def _what(bundle: bundles.Bundle, name: str) -> str:
    settings = _layout(bundle, name).settings
    if settings is None:
        return "an IP-Adapter's file"
    return settings.get("_class_name") or settings["architectures"][0]


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="mv2 export",
        description="Writes a component of a cascade as diffusers or transformers save it, to be "
        "loaded with from_pretrained (an IP-Adapter: with load_ip_adapter).",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="DIR", help="a cascade folder")
    parser.add_argument("component", metavar="COMPONENT", help=f"{', '.join(_LAYOUTS)}")
    parser.add_argument("-o", "--out", metavar="OUT", required=True, help="the folder to make "
                        "(of an IP-Adapter, the .safetensors file)")  # fmt: skip
    return parser
