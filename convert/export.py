"""`mv2 export`: a component of a cascade, back in the layout of PyTorch's libraries.

Networks become folders that diffusers or transformers load with `from_pretrained`; an IP-Adapter
becomes the one file that `load_ip_adapter` takes. What is exported converts back bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mv2_jax import bundle as bundles
from mv2_jax import files, tensorfile
from mv2_jax.arguments import Parser
from mv2_jax.config import SparseControlConfig
from mv2_jax.convert import kinds
from mv2_jax.convert.engine import ConversionError, Table, exported
from mv2_jax.convert.kind import Layout
from mv2_jax.errors import InputError
from mv2_jax.params import flatten
from mv2_jax.stages import vfi_table
from mv2_jax.tensorfile import Spec

# The components that a kind of network stands for; interpolators are no network of those libraries.
_NAMES = tuple(name for name in bundles.COMPONENTS if not vfi_table.is_component(name))


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 export`; returns the exit code.

    Raises:
        InputError: no such component, or one that those libraries have no network for.
        OSError: the output cannot be written.
    """
    args = _parser().parse_args(list(arguments))
    bundle = bundles.read(args.folder)
    out = Path(args.out)
    if args.component:
        _one(bundle, args.component, out)
        return 0
    if out.exists():
        raise InputError(f"{out} already exists; choose another name or remove it")
    why = refused(bundle)
    out.mkdir(parents=True)
    for name in bundle.components:
        if name not in why:
            single = kinds.of(bundle.config(name)).layout(bundle, bundle.config(name)).settings
            _one(bundle, name, out / (name if single else f"{name}.safetensors"))
    for reason in why.values():
        print(f"left out: {reason}")
    return 0


def refused(bundle: bundles.Bundle) -> dict[str, str]:
    """{component: why not} of those that PyTorch's libraries have no class for."""
    why = {}
    for name in bundle.components:
        try:
            _layout(bundle, name)
        except InputError as error:
            why[name] = str(error)
    return why


def _one(bundle: bundles.Bundle, name: str, out: Path) -> None:
    """Writes a component and says so."""
    write(bundle, name, out)
    config = bundle.config(name)
    print(f"{out}: {name} of {bundle.name}, as {_what(bundle, name)}")
    moving = config.unet.motion if isinstance(config, SparseControlConfig) else config
    if getattr(moving, "norm_scope", "clip") == "frame":
        print("note: these weights want norms over each frame; diffusers takes whole clips")


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
    kind = kinds.of(config)
    if kind is None or kind.layout is None:
        what = type(config).__name__.removesuffix("Config")
        raise InputError(
            f"{name}: diffusers and transformers have no class for it ({what}); exported are "
            f"{', '.join(held for held in bundle.components if held in _NAMES)}"
        )
    try:
        return kind.layout(bundle, config)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _what(bundle: bundles.Bundle, name: str) -> str:
    settings = _layout(bundle, name).settings
    if settings is None:
        return "an IP-Adapter's file"
    return settings.get("_class_name") or settings["architectures"][0]


def _parser() -> Parser:
    parser = Parser(
        prog="mv2 export",
        description="Writes components of a cascade as diffusers or transformers save it, to be "
        "loaded with from_pretrained (an IP-Adapter: with load_ip_adapter).",
    )
    parser.add_argument("folder", metavar="DIR", help="a cascade folder")
    parser.add_argument("component", nargs="?", metavar="COMPONENT", help="a component (all "
                        "that those libraries have a class for; the others are named)"
                        )  # fmt: skip
    parser.add_argument("-o", "--out", metavar="OUT", required=True, help="the folder to write "
                        "(for an IP-Adapter alone, the .safetensors file)")  # fmt: skip
    return parser
