"""Words on files that no table reads: what they look like, and what they lack."""

from __future__ import annotations

import re
from collections.abc import Collection

from mv2_jax.convert.engine import shorten

# Tensors that each known kind always has, by the ends of their names in diffusers' layouts.
_KNOWN = {
    "a UNet": (
        "conv_in.weight",
        "time_embedding.linear_1.weight",
        "down_blocks.0.resnets.0.conv1.weight",
        "mid_block.resnets.0.conv1.weight",
        "up_blocks.0.resnets.0.conv1.weight",
    ),
    "a single-file Stable Diffusion checkpoint": (
        "input_blocks.0.0.weight",
        "time_embed.0.weight",
        "middle_block.0.in_layers.0.weight",
        "output_blocks.0.0.in_layers.0.weight",
    ),
    "a VAE": (
        "encoder.conv_in.weight",
        "encoder.conv_out.weight",
        "decoder.conv_in.weight",
        "decoder.conv_out.weight",
    ),
    "a CLIP text encoder": (
        "embeddings.token_embedding.weight",
        "embeddings.position_embedding.weight",
        "encoder.layers.0.self_attn.q_proj.weight",
        "final_layer_norm.weight",
    ),
    "a CLIP vision encoder": (
        "embeddings.patch_embedding.weight",
        "embeddings.class_embedding",
        "encoder.layers.0.self_attn.q_proj.weight",
        "post_layernorm.weight",
    ),
    "an IP-Adapter": ("ip_adapter.1.to_k_ip.weight", "ip_adapter.1.to_v_ip.weight"),
}
# Models of other families that people keep in the same folders.
_FOREIGN = {
    r"double_blocks\.\d+\.": "a FLUX transformer",
    r"joint_blocks\.\d+\.|transformer_blocks\.\d+\.attn\.add_q_proj": "an SD3 or FLUX transformer",
    r"\.block\.\d+\.layer\.\d+\.SelfAttention\.": "a T5 text encoder",
    r"^model\.layers\.\d+\.self_attn\.": "a language model",
    r"^block\d+\.convblock": "a RIFE interpolator",
    r"patch_embed.*proj|blocks\.\d+\.adaLN": "a diffusion transformer",
}


def likeness(names: Collection[str]) -> str:
    """What a file of such names looks like, and what it lacks to be that."""
    if not names:
        return "it is empty"
    listed = ", ".join(shorten(sorted(names), limit=3))
    for pattern, what in _FOREIGN.items():
        if any(re.search(pattern, name) for name in names):
            return f"it looks like {what}, which has no place in this cascade ({listed})"
    held = {what: [m for m in marks if _has(names, m)] for what, marks in _KNOWN.items()}
    best = max(held, key=lambda what: len(held[what]) / len(_KNOWN[what]))
    if not held[best]:
        return f"its {len(names)} tensors look like nothing known ({listed})"
    missing = [mark for mark in _KNOWN[best] if mark not in held[best]]
    return f"it looks most like {best}, but lacks {', '.join(missing) or 'its other half'}"


def _has(names: Collection[str], mark: str) -> bool:
    return any(name == mark or name.endswith(f".{mark}") for name in names)
