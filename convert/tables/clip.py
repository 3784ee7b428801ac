"""CLIP's text and vision encoders, in every layout that public checkpoints use.

- transformers: with `text_model.` / `vision_model.` or, as it saves the plain models since 5.6,
  without. LDM checkpoints hold it below `cond_stage_model.transformer.`.
- OpenCLIP, and OpenAI's own: query, key and value fused in `in_proj`, projections stored
  [in, out]. SD2's and SDXL's checkpoints hold it below `cond_stage_model.model.` and
  `conditioner.embedders.1.model.`.

`find_text` and `find_vision` say where in a file such encoders are, and their tables:

    for prefix, table in find_text(source):
        convert(Renamed(source, prefix), table, target)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mv2_jax.convert.engine import Ignore, Rule, dense, fused, norm

_BUFFER = "a constant buffer"
_HEAD = "belongs to contrastive training only"
_OTHER = "the other tower: it has its own table"
_PATCHES = "embeddings/patch_embedding/kernel"
_LAYER = "encoder/layers_{i}"


class EncoderNames(NamedTuple):
    """One encoder of a file: `table` reads the names that start with `prefix`, without it."""

    prefix: str
    table: list[Rule | Ignore]


def transformers_text(
    inner: str = "text_model.", *, projection: bool = True
) -> list[Rule | Ignore]:
    """transformers' CLIPTextModel, CLIPTextModelWithProjection or the text half of CLIPModel.

    Args:
        inner: "text_model." or "" (see the module's text).
        projection: whether the target has `text_projection`; otherwise the source's is ignored.
    """
    return [
        _embedding(f"{inner}embeddings.token_embedding", "token_embedding"),
        _embedding(f"{inner}embeddings.position_embedding", "position_embedding"),
        Ignore(f"{inner}embeddings.position_ids", _BUFFER),
        *_transformers_layers(f"{inner}encoder"),
        *norm(f"{inner}final_layer_norm", "final_layer_norm"),
        _projection("text_projection.weight", "text_projection", "linear", projection),
        Ignore("{x:visual_projection|vision_model}.{y:**}", _OTHER),
        Ignore("logit_scale", _HEAD),
    ]


def transformers_vision(
    inner: str = "vision_model.", *, projection: bool = True
) -> list[Rule | Ignore]:
    """transformers' CLIPVisionModel, its WithProjection or the vision half of CLIPModel."""
    return [
        Rule(f"{inner}embeddings.class_embedding", "embeddings/class_embedding"),
        Rule(f"{inner}embeddings.patch_embedding.weight", _PATCHES, "conv"),
        _embedding(f"{inner}embeddings.position_embedding", "position_embedding"),
        Ignore(f"{inner}embeddings.position_ids", _BUFFER),
        *norm(f"{inner}pre_layrnorm", "pre_layrnorm"),
        *_transformers_layers(f"{inner}encoder"),
        *norm(f"{inner}post_layernorm", "post_layernorm"),
        _projection("visual_projection.weight", "visual_projection", "linear", projection),
        Ignore("{x:text_projection|text_model}.{y:**}", _OTHER),
        Ignore("logit_scale", _HEAD),
    ]


def open_clip_text(*, projection: bool = True) -> list[Rule | Ignore]:
    """OpenCLIP's text tower, alone or in a whole CLIP."""
    return [
        _embedding("token_embedding", "token_embedding"),
        Rule("positional_embedding", "embeddings/position_embedding/embedding"),
        *_open_clip_layers(),
        *norm("ln_final", "final_layer_norm"),
        _projection("text_projection", "text_projection", "copy", projection),
        Ignore("{x:attn_mask|context_length|vocab_size|input_resolution}", _BUFFER),
        Ignore("logit_{x:scale|bias}", _HEAD),
        Ignore("visual.{x:**}", _OTHER),
    ]


def open_clip_vision(*, projection: bool = True) -> list[Rule | Ignore]:
    """OpenCLIP's vision transformer, its names without `visual.`."""
    return [
        Rule("class_embedding", "embeddings/class_embedding"),
        Rule("conv1.weight", _PATCHES, "conv"),
        Rule("positional_embedding", "embeddings/position_embedding/embedding"),
        *norm("ln_pre", "pre_layrnorm"),
        *_open_clip_layers(),
        *norm("ln_post", "post_layernorm"),
        _projection("proj", "visual_projection", "copy", projection),
    ]


def find_text(names: Iterable[str], *, projection: bool = True) -> list[EncoderNames]:
    """Every text encoder among a file's names, in order of prefix (SDXL's files hold two)."""
    found = []
    for name in sorted(names):
        if _ends(name, "embeddings.token_embedding.weight"):
            prefix, inner = _outer(name, "embeddings.token_embedding.weight", "text_model.")
            found.append(EncoderNames(prefix, transformers_text(inner, projection=projection)))
        elif _ends(name, "token_embedding.weight"):
            prefix = name.removesuffix("token_embedding.weight")
            found.append(EncoderNames(prefix, open_clip_text(projection=projection)))
    return found


def find_vision(names: Iterable[str], *, projection: bool = True) -> list[EncoderNames]:
    """Every vision encoder among a file's names, in order of prefix."""
    found = []
    for name in sorted(names):
        if _ends(name, "embeddings.patch_embedding.weight"):
            prefix, inner = _outer(name, "embeddings.patch_embedding.weight", "vision_model.")
            found.append(EncoderNames(prefix, transformers_vision(inner, projection=projection)))
        elif _ends(name, "visual.conv1.weight"):
            prefix = name.removesuffix("conv1.weight")
            found.append(EncoderNames(prefix, open_clip_vision(projection=projection)))
    return found


def _ends(name: str, mark: str) -> bool:
    return name == mark or name.endswith(f".{mark}")


def _outer(name: str, mark: str, inner: str) -> tuple[str, str]:
    """(what stands before `inner`, `inner`), or with no `inner` there (all before `mark`, "")."""
    stem = name.removesuffix(mark)
    return (stem.removesuffix(inner), inner) if stem.endswith(inner) else (stem, "")


def _embedding(source: str, name: str) -> Rule:
    return Rule(f"{source}.weight", f"embeddings/{name}/embedding")


def _projection(source: str, name: str, op: str, wanted: bool) -> Rule | Ignore:
    if wanted:
        return Rule(source, f"{name}/kernel", op)
    return Ignore(source, "the target has no projection")


def _transformers_layers(source: str) -> list[Rule]:
    layer = f"{source}.layers.{{i}}"
    rules = []
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        rules += dense(f"{layer}.self_attn.{name}", f"{_LAYER}/self_attn/{name}")
    for name in ("fc1", "fc2"):
        rules += dense(f"{layer}.mlp.{name}", f"{_LAYER}/mlp/{name}")
    for name in ("layer_norm1", "layer_norm2"):
        rules += norm(f"{layer}.{name}", f"{_LAYER}/{name}")
    return rules


def _open_clip_layers() -> list[Rule]:
    block, attention = "transformer.resblocks.{i}", f"{_LAYER}/self_attn"
    rules = fused(f"{block}.attn", attention)
    for source, target in (("c_fc", "fc1"), ("c_proj", "fc2")):
        rules += dense(f"{block}.mlp.{source}", f"{_LAYER}/mlp/{target}")
    for source, target in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
        rules += norm(f"{block}.{source}", f"{_LAYER}/{target}")
    return rules
