"""CLIP score: how well pictures fit a text, by a CLIP that its user brings (arXiv 2104.08718).

100 times the cosine of CLIP's picture and text, 0 where it is negative: torchmetrics' CLIPScore and
VBench's "overall consistency" measure, but for the network. Scores of different CLIPs cannot be
compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import params
from mv2_jax.errors import InputError
from mv2_jax.models.clip_text import TextEncoder
from mv2_jax.models.clip_vision import VisionEncoder, preprocess
from mv2_jax.text import CLIPTokenizer

_AT_ONCE = 8  # pictures
_TEXTS = ("text_encoder_2", "t2i_text_encoder_2", "text_encoder")


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP's two halves, whose outputs are of one width.

    text, vision: (config, tree) of each. name: what it was read from.
    """

    name: str
    text: tuple[Any, params.Tree]
    vision: tuple[Any, params.Tree]

    @cached_property
    def _tokenizer(self) -> CLIPTokenizer:
        # OpenCLIP's larger ones, whose activation is the exact one, pad with 0.
        padding = "eos" if self.text[0].activation == "quick_gelu" else "zero"
        return CLIPTokenizer(self.text[0].max_length, padding)

    @cached_property
    def _text(self) -> Any:
        encoder = TextEncoder(self.text[0])
        return jax.jit(lambda tree, ids: _unit(encoder.apply({"params": tree}, ids).projected))

    @cached_property
    def _vision(self) -> Any:
        cfg = self.vision[0]
        encoder = VisionEncoder(cfg)

        def run(tree: Any, images: jax.Array) -> jax.Array:
            pixels = preprocess(images, cfg.image_size, quantise=True)
            return _unit(encoder.apply({"params": tree}, pixels).image_embeds)

        return jax.jit(run)

    def of_text(self, text: str) -> np.ndarray:
        """The direction [P] of a text; what is beyond the encoder's length is left out."""
        ids = jnp.asarray(self._tokenizer.encode([text]))
        return np.asarray(self._text(self.text[1], ids))[0]

    def of_pictures(self, images: np.ndarray) -> np.ndarray:
        """The directions [B, P] of pictures [B, H, W, 3] in [-1, 1]."""
        parts = [images[at : at + _AT_ONCE] for at in range(0, len(images), _AT_ONCE)]
        return np.concatenate([np.asarray(self._vision(self.vision[1], part)) for part in parts])

    def score(self, text: str, images: np.ndarray) -> np.ndarray:
        """The CLIP score [B], 0 to 100, of pictures [B, H, W, 3] in [-1, 1] for a text."""
        cosine = self.of_pictures(images) @ self.of_text(text)
        return np.maximum(100 * cosine, 0)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def load(asked: str) -> Clip:
    """A CLIP from its file or folder, as transformers or OpenCLIP has it, or a cascade folder that
    holds both halves of one.

    Raises:
        InputError: there is none, or its halves are not of one CLIP.
    """
    is_cascade = (Path(asked) / "cascade.json").is_file()
    text, vision = (_of_cascade if is_cascade else _of_checkpoint)(asked)
    ends = [getattr(cfg, "projection", None) for cfg in (text[0], vision[0])]
    if None in ends or ends[0] != ends[1]:
        said = ["no projection" if end is None else f"a projection of width {end}" for end in ends]
        raise InputError(
            f"--clip {asked}: its text encoder has {said[0]} and its image encoder {said[1]}: they "
            "are not halves of one CLIP; name a whole one, such as clip-vit-large-patch14"
        )
    return Clip(asked, text, vision)


def _of_checkpoint(asked: str) -> list[tuple[Any, params.Tree]]:
    from mv2_jax.convert import pending
    from mv2_jax.convert.checkpoint import open_checkpoint

    source = open_checkpoint(asked)
    halves = [pending.plain(source.one(kind)) for kind in ("text_encoder", "image_encoder")]
    return [
        (half.config, params.unflatten(dict(half.pending(np.float32).make()))) for half in halves
    ]


def _of_cascade(folder: str) -> list[tuple[Any, params.Tree]]:
    """A cascade's image encoder, and the text encoder of the same CLIP, if one is."""
    from mv2_jax import bundle

    held = bundle.read(folder)
    names = [name for name in _TEXTS if name in held.components]
    if not names or "image_encoder" not in held.components:
        raise InputError(f"--clip {folder}: it lacks an image encoder or a text encoder of CLIP's")
    wide = held.config("image_encoder").projection
    names.sort(key=lambda name: getattr(held.config(name), "projection", None) != wide)
    return [(held.config(name), held.load(name)) for name in (names[0], "image_encoder")]
