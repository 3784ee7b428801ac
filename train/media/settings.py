"""The `data` settings of people's own clips and pictures, with their defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest
from mv2_jax.train import overrides
from mv2_jax.train.phase import phase, recipe

DEFAULTS: dict[str, Any] = {
    "source": "auto",  # of train.source.SOURCES, or module:name of a Records
    "root": "",  # a folder, or an address (gs://, s3://, ...)
    # Several sources: ({"source": ..., "root": ..., "weight": 1.0}, ...), settings above and below
    # changed for each. Weights are shares of what is seen; without any, all samples count alike.
    "mix": (),
    "captions": "",  # the list of captions; empty: beside the files, or a list found at the top
    "file_key": "",  # its columns; empty: the usual names
    "caption_key": "",
    "captioned": True,  # what has no caption is left out; False: it is trained on as ""
    "caption_rows": 1,  # rows of 75 tokens that a caption may fill
    "repeats": False,  # kohya's folder names, 10_dog
    "split": "train",  # of a TFDS or a Hugging Face data set
    "fps": 8.0,  # frames a second of a training clip; 0: every `stride`th frame of the file
    "stride": 1,
    "frames": (),  # lengths of clips, each file gets the longest that it has; empty: the stage's
    "clip": "random",  # which part of a video: random, start or middle
    "aspects": False,  # sizes by shape, of about the stage's area; False: the stage's size alone
    "aspect_step": 64,  # their sides are multiples of it
    "aspect_most": 2.0,  # the longest, as width / height or height / width
    "crop": "centre",  # or random
    "flip": 0.0,  # how often a sample is mirrored
    "passes": 0,  # visits after which a sample's draws (clip, crop, flip) repeat; 0: never
    "image_every": 0,  # I2V, V2V: every so many steps see pictures as one-frame clips
    "image_batch": 16,
    "decoded": 0.0,  # how often the reference is shown as the autoencoder gives it back
    "sizes": (),  # T2I: sides or (height, width), taken in turns; empty: the stage's size
    "count": 1024,  # VAE, VFI: samples an epoch
    "threads": 8,  # that read and decode
    "ahead": 2,  # batches that are ready before they are asked for
}

# What `Media` reads of them whatever it is asked for, and what else where samples are streamed;
# the kinds of records say which of the others they read.
FILES = ("root", "mix", "captioned", "threads", "fps", "stride", "clip")
STREAMED = (
    *FILES, "ahead", "aspects", "aspect_step", "aspect_most", "crop", "flip", "passes",
)  # fmt: skip

CHOICES = {"clip": ("random", "start", "middle"), "crop": ("centre", "random")}
LEAST = {"caption_rows": 1, "stride": 1, "aspect_step": 1, "threads": 1, "ahead": 1, "passes": 0,
         "fps": 0, "flip": 0, "decoded": 0, "aspect_most": 1, "image_every": 0}  # fmt: skip
MOST = {"flip": 1, "decoded": 1}


def data(**changes: Any) -> dict[str, Any]:
    """A recipe's `data` for clips and pictures of one's own: the defaults above, changed.

    Raises:
        InputError: an unknown name; the nearest is named.
    """
    for name in changes:
        if name not in DEFAULTS:
            raise InputError(f"data: there is no setting {name!r}{nearest(name, DEFAULTS)}")
    return {**DEFAULTS, **changes}


def from_texts(texts: Iterable[str]) -> dict[str, Any]:
    """The settings that "fps=8" and such change, typed by their defaults; for commands.

    Raises:
        InputError: an unknown name, or a value of another type.
    """
    cfg = recipe(own=phase("t2i", data=data()))
    overrides.apply(cfg, [f"data.{text}" for text in texts])
    return cfg.phases.own.data.to_dict()


def check(given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings, those that are not given at their defaults.

    Raises:
        InputError: a value that cannot be; the message says what may.
    """
    whole = {**DEFAULTS, **given}
    for name, choices in CHOICES.items():
        if whole[name] not in choices:
            hint = nearest(str(whole[name]), choices)
            raise InputError(f"data.{name} is {whole[name]!r}: use {' or '.join(choices)}{hint}")
    for name, least in LEAST.items():
        if whole[name] < least:
            raise InputError(f"data.{name} is {whole[name]}: it must be {least} or more")
    for name, most in MOST.items():
        if whole[name] > most:
            raise InputError(f"data.{name} is {whole[name]}: it is a share, from 0 to {most}")
    for part in whole["mix"]:
        if not hasattr(part, "keys"):
            raise InputError('data.mix: name each source as {"root": ..., "weight": ...}')
        unknown = [name for name in part if name not in (*DEFAULTS, "weight")]
        if unknown:
            hint = nearest(unknown[0], (*DEFAULTS, "weight"))
            raise InputError(f"data.mix: there is no setting {unknown[0]!r}{hint}")
    return whole
