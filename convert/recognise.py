"""What a checkpoint holds, told from the names and shapes of its tensors, never from its own name.

`recognise` finds every network in a file, by asking each of `kinds`. Each comes as a `FileNetwork`:
the tensors, the table that reads them, and a config. Every tensor of the file belongs to a network
or is left out by a named rule; otherwise the file is refused, with words on what it looks like.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mv2_jax.convert import config_from_shapes, kinds, refusals
from mv2_jax.convert.engine import Ignore, shorten
from mv2_jax.convert.kind import FileNetwork
from mv2_jax.convert.sources import View
from mv2_jax.convert.unrecognised import likeness
from mv2_jax.errors import InputError

# Tensors that say how a UNet is sampled and belong to no network; `schedules` reads them.
MARKS = frozenset({"v_pred", "ztsnr", "edm_mean", "edm_std"})
MARKS |= {"edm_vpred.sigma_max", "edm_vpred.sigma_min"}
# What whole training checkpoints hold beside the networks.
_LEFT_OUT = [
    Ignore("model_ema.{x:**}", "a running average of the weights"),
    Ignore("{x:loss|discriminator|perceptual_loss}.{y:**}", "what a VAE was trained against"),
    Ignore("{x:betas|logvar|log_one_minus_alphas_cumprod|lvlb_weights}", "the noise schedule"),
    Ignore("{x:alphas_cumprod|alphas_cumprod_prev}", "the noise schedule"),
    Ignore("{x:posterior|sqrt}_{y:*}", "the noise schedule"),
    Ignore("denoiser.{x:**}", "the noise schedule"),
    Ignore("{x:global_step|epoch|scale_factor}", "the training run's own"),
    Ignore("cond_stage_model.{x:logit_scale|text_projection}", "what CLIP was trained with"),
    Ignore(
        "conditioner.embedders.{i}.{x:logit_scale|text_projection}", "what CLIP was trained with"
    ),
    Ignore("{x:**}.embeddings.position_ids", "0, 1, 2 ... of mergers that know one layout alone"),
]


def recognise(
    source: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> list[FileNetwork]:
    """Every network in a file.

    Args:
        source: its tensors (`sources.load`).
        settings: the config.json beside it, where there is one.

    Raises:
        InputError: nothing known in it, tensors that belong to nothing, or a network that the
            modules here cannot be.
    """
    settings = settings or {}
    what = refusals.by_tensors(source)
    if what:
        raise InputError(what)
    for kind in ("control_lora", "lora", "motion_lora"):  # whose names may look like a network's
        changes = list(kinds.get(kind).find(source, settings))
        if changes:
            return changes
    try:
        parts = [part for _, kind in kinds.every() for part in kind.find(source, settings)]
    except config_from_shapes.Missing as error:
        raise InputError(f"{error}: {likeness(source)}") from None
    if not parts:
        raise InputError(f"nothing known in it: {likeness(source)}")
    claimed = {_origin(part.tensors, name) for part in parts for name in part.tensors}
    others = [name for name in source if name not in claimed | MARKS]
    strange = [n for n in others if not any(r.source_regex.fullmatch(n) for r in _LEFT_OUT)]
    if strange:
        known = " and ".join(part.title for part in parts)
        listed = "; ".join(shorten(strange, limit=4))
        raise InputError(
            f"it holds {known}, and {len(strange)} tensors of unknown use: {listed}; what is known "
            f"to be of no use is left out with --ignore {_pattern(strange)!r}"
        )
    return parts


def _pattern(names: list[str]) -> str:
    """A pattern for the first of these names and those below the same module."""
    stem = names[0].rpartition(".")[0]
    return f"{stem}.*" if stem and len(names) > 1 else names[0]


def _origin(tensors: Mapping[str, Any], name: str) -> str:
    return tensors.origin(name) if isinstance(tensors, View) else name
