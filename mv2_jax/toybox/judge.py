"""The judge: small classifiers that say which toybox words a picture or a clip shows, or "none".

Thing, colour and scene are read off single frames, the motion off a clip. Each classifier has one
class more than it has words: the last, "none", for whatever is not clearly one of them. The judge
is trained on true renders and on damage done to them (see `judge_data`), never on anything that a
model made, so that it can measure models.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mv2_jax import shards
from mv2_jax.config import JudgeConfig
from mv2_jax.toybox.vocabulary import SIZES

KINDS = ("thing", "colour", "scene", "motion")
PICTURED = KINDS[:3]  # what a single frame shows
NONE = dict(zip(KINDS, SIZES))  # index of the class "none"
HALVES = ("frames", "motion")  # the two classifiers, which share nothing


class Trunk(nn.Module):
    """Patches of `patch` x `patch` pixels, then residual convolutions on planes ever halved."""

    channels: tuple[int, ...]
    patch: int

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        p = self.patch
        x = x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        x = nn.Dense(self.channels[0], name="embed")(x.reshape(b, h // p, w // p, p * p * c))
        for i, width in enumerate(self.channels[1:]):
            x = nn.Conv(width, (3, 3), (2, 2), name=f"down_{i}")(nn.relu(x))
            for j in range(2):
                y = nn.relu(nn.GroupNorm(8, name=f"norm_{i}_{j}")(x))
                x = x + nn.Conv(width, (3, 3), name=f"conv_{i}_{j}")(y)
        return nn.relu(nn.GroupNorm(8, name="norm_out")(x))


class Judge(nn.Module):
    """Both classifiers; `frames` and `clips` return logits by kind, the last class is "none"."""

    cfg: JudgeConfig

    def setup(self):
        self.frame_trunk = Trunk(self.cfg.frame_channels, 4)
        self.frame_hidden = nn.Dense(self.cfg.hidden)
        self.frame_heads = [nn.Dense(NONE[kind] + 1) for kind in PICTURED]
        self.motion_trunk = Trunk(self.cfg.motion_channels, 2)
        self.motion_hidden = nn.Dense(self.cfg.hidden)
        self.motion_head = nn.Dense(NONE["motion"] + 1)

    def frames(self, x):
        """Frames [B, S, S, 3] in [-1, 1] -> logits [B, classes] of thing, colour and scene."""
        x = self.frame_trunk(x)
        # What and whether, not where.
        x = jnp.concatenate([x.mean(axis=(1, 2)), x.max(axis=(1, 2))], axis=-1)
        x = nn.relu(self.frame_hidden(x))
        return {kind: head(x) for kind, head in zip(KINDS, self.frame_heads)}

    def clips(self, x):
        """Clips [B, T, S/2, S/2, 3] -> logits [B, classes] of motion. Time becomes channels."""
        b, t, h, w, c = x.shape
        x = jnp.moveaxis(x, 1, -2).reshape(b, h, w, t * c)
        x = self.motion_trunk(x)
        x = nn.relu(self.motion_hidden(x.reshape(b, -1)))
        return {"motion": self.motion_head(x)}

    def __call__(self, x):
        """Clips [B, T, S, S, 3] -> logits of all four kinds; frames' are [B * T, classes]."""
        b, t, h, w, c = x.shape
        half = x.reshape(b, t, h // 2, 2, w // 2, 2, c).mean(axis=(3, 5))
        return {**self.frames(x.reshape(b * t, h, w, c)), **self.clips(half)}


def prepare(video, cfg: JudgeConfig):
    """Brings clips [B, T, H, W, 3] (uint8, or float in [-1, 1]) to what the judge looks at.

    Returns:
        [B, cfg.frames, S, S, 3] float32 in [-1, 1]: frames evenly over the clip (repeated where
        it has fewer), antialiased.
    """
    video = jnp.asarray(video)
    if video.dtype == jnp.uint8:
        video = video.astype(jnp.float32) / 127.5 - 1.0
    pick = jnp.round(jnp.linspace(0, video.shape[1] - 1, cfg.frames)).astype(jnp.int32)
    video = video[:, pick].astype(jnp.float32)
    shape = (*video.shape[:2], cfg.size, cfg.size, 3)
    return jax.image.resize(video, shape, "linear", antialias=True)


def init(cfg: JudgeConfig, key) -> dict[str, Any]:
    """Fresh parameters."""
    clip = jnp.zeros((1, cfg.frames, cfg.size, cfg.size, 3))
    return jax.jit(Judge(cfg).init)(key, clip)["params"]


def half(name: str) -> str:
    """Which of `HALVES` a top-level entry of the parameters belongs to."""
    return "motion" if name.startswith("motion_") else "frames"


def _apply(model, method, params, x):
    return model.apply({"params": params}, x, method=method)


def judge_loss(params, batch, key, cfg: JudgeConfig):
    """Cross-entropy of the classifiers on a batch of `judge_data.judge_batch`.

    Returns:
        (loss, metrics): metrics hold the share of right answers by kind, among those that count.
    """
    del key
    logits = {}
    for method in ("frames", "clips"):
        if method in batch:
            apply = partial(_apply, Judge(cfg), method)
            logits |= shards.over_samples(apply, params, batch[method], gathered=False)
    total, metrics = jnp.zeros(()), {}
    for kind in logits:
        i = KINDS.index(kind)
        source = "clip" if kind == "motion" else "frame"
        label, weight = batch[f"{source}_labels"][:, i], batch[f"{source}_weights"][:, i]
        logp = jax.nn.log_softmax(logits[kind])
        total -= jnp.mean(weight * jnp.take_along_axis(logp, label[:, None], 1)[:, 0])
        right = (jnp.argmax(logits[kind], axis=-1) == label).astype(jnp.float32)
        metrics[kind] = jnp.sum(right * weight) / jnp.maximum(jnp.sum(weight), 1.0)
    return total, metrics
