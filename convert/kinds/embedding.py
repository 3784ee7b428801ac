"""Embeddings of textual inversion (arXiv 2208.01618): words of one's own for a text encoder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mv2_jax.convert.kind import FileNetwork, Kind
from mv2_jax.convert.sources import View, spec
from mv2_jax.errors import InputError

MOST = 75  # vectors: what a row of CLIP's has room for
# The web UI's file of one: a pickle, whose table of ids is of no use, or safetensors.
_WEB_UI = re.compile(r"string_to_param\.(?P<token>.*)|emb_params")
_WEB_UI_REST = re.compile(r"string_to_token\..*")
# SDXL's: what the first and the second text encoder read.
_SDXL = {"clip_l": 0, "clip_g": 1, "text_encoders_0": 0, "text_encoders_1": 1}


@dataclass(frozen=True)
class EmbeddingConfig:
    """name: as the file has it; None where the file's own name is meant, as in the web UI's files.
    vectors: how many tokens it stands for. widths: of each text encoder that it is for."""

    name: str | None
    vectors: int
    widths: tuple[int, ...]


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[FileNetwork]:
    """The embeddings of a file that holds nothing else. Its tensors are called 0, and of SDXL's
    second text encoder 1."""
    names = [name for name in source if not _WEB_UI_REST.fullmatch(name)]
    rest = {name: name for name in source if name not in names}
    web = [name for name in names if _WEB_UI.fullmatch(name)]
    if names and len(web) == len(names):
        if len(web) > 1:
            raise InputError(f"it holds {len(web)} embeddings under one name")
        yield _part(source, None, {"0": web[0], **rest}, "the web UI's")
    elif names and not rest and all(name in _SDXL for name in names):
        yield _part(source, None, {str(_SDXL[name]): name for name in names}, "SDXL's")
    elif names and not rest and all(_is_word(source, name) for name in names):
        for name in names:
            yield _part(source, name, {"0": name}, "diffusers'")


def _is_word(source: Mapping[str, Any], name: str) -> bool:
    """Whether a tensor may be a token that diffusers saved under its name. Those of networks have
    modules in theirs."""
    shape = spec(source, name).shape
    rows = shape[0] if len(shape) == 2 else 1
    return "." not in name and len(shape) in (1, 2) and rows <= MOST and shape[-1] >= 32


def _part(
    source: Mapping[str, Any], name: str | None, names: Mapping[str, str], layout: str
) -> FileNetwork:
    tensors = View(source, names)
    shapes = [tensors.spec(key).shape for key in sorted(names) if key in "01"]
    if any(len(shape) not in (1, 2) or not all(shape) for shape in shapes):
        raise InputError(f"this is an embedding whose numbers are {shapes[0]}; rows are wanted")
    vectors = {shape[0] if len(shape) == 2 else 1 for shape in shapes}
    if len(vectors) > 1 or max(vectors) > MOST:
        raise InputError(
            f"this is an embedding of {' and '.join(map(str, sorted(vectors)))} vectors; at most "
            f"{MOST}, and as many for each text encoder, are read"
        )
    widths = tuple(shape[-1] for shape in shapes)
    cfg = EmbeddingConfig(name, max(vectors), widths)
    called = f" {name!r}" if name else ""
    many = f"{cfg.vectors} vector" + "s" * (cfg.vectors != 1)
    title = f"an embedding{called} ({many}, {' and '.join(map(str, widths))} wide)"
    return FileNetwork("embedding", title, layout, tensors, [], cfg)


KIND = Kind(title="an embedding", serves="--embedding", find=find)
