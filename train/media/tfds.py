"""Any TFDS data set by name, through its random-access source, without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.train import needs
from mv2_jax.train.media.records import (
    CAPTION_KEYS,
    Content,
    Frames,
    Records,
    picked,
    root_of,
    said,
)

PACKAGES = {"tensorflow-datasets": "tensorflow_datasets", "array-record": "array_record"}


class DataSet(Records):
    """The split `data.split` of the data set that `data.root` names ("NAME", "NAME/CONFIG:1.0.0"),
    or of a prepared one's folder. Its clips or pictures are its frames' or picture's feature, its
    captions a text, or the name of a label.

    Raises:
        InputError: no such data set or split, one that cannot be prepared in ArrayRecord's format,
            or features of which none can be seen.
    """

    settings = ("split", "file_key", "caption_key")

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(data)
        needs.check("data.source=tfds", PACKAGES, "data")
        self.root = root_of(data, "a TFDS data set, NAME or NAME/CONFIG, or its folder")
        self.builder = self._builder()
        split = str(data.get("split", "train"))
        try:
            self.source = self.builder.as_data_source(split)
        except Exception as error:  # of many kinds, each with pages of text
            raise InputError(f"data.split: {self.root} has no {split!r}: {_line(error)}") from None
        self.media, self.words = self._keys()
        self._row = lru_cache(maxsize=16)(lambda number: self.source[number])

    def __len__(self) -> int:
        return len(self.source)

    def facts(self) -> Mapping[str, Any]:
        info = self.builder.info
        about = [info.full_name, str(self.data.get("split", "train")), len(self)]
        return {"tfds": about, "key": self.media, "fps": self.data.get("fps", 0)}

    def name(self, number: int) -> str:
        return f"{self.builder.info.full_name}[{number}]"

    def content(self, number: int) -> Content:
        pixels = np.asarray(self._row(number)[self.media])
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] not in (1, 3):
            raise InputError(f"{self.media!r} is {pixels.dtype} {pixels.shape}, no RGB")
        pixels = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
        # TFDS keeps no pace: each frame is taken to be one of those that are asked for.
        video = pixels.ndim == 4
        return Frames(pixels if video else pixels[None], (self.data["fps"] or 8.0) if video else 0)

    def captions(self, number: int) -> Sequence[str]:
        if not self.words:
            return ()
        value = self._row(number)[self.words]
        feature = self.builder.info.features[self.words]
        if hasattr(feature, "int2str"):
            return said(feature.int2str(int(value)).replace("_", " "))
        return said(value.tolist() if isinstance(value, np.ndarray) else value)

    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        try:
            if Path(self.root).is_dir():
                return tfds.builder_from_directory(self.root)
            where = os.environ.get("TFDS_DATA_DIR")
            builder = tfds.builder(self.root, data_dir=where, file_format="array_record")
            builder.download_and_prepare()
            return builder
        except ImportError as error:
            raise InputError(
                f"data.root: {self.root} has features that TFDS makes with {error.name or error}, "
                "as Video; install it, or name the prepared folder with data.source=array_record"
            ) from None
        except Exception as error:  # of many kinds, each with pages of text
            raise InputError(f"data.root: TFDS has no {self.root!r}: {_line(error)}") from None

    def _keys(self) -> tuple[str, str]:
        features = self.builder.info.features
        seen = [name for name, feature in features.items() if _pixels(feature)]
        texts = [n for n, f in features.items() if type(f).__name__ in ("Text", "ClassLabel")]
        named = str(self.data.get("file_key", ""))
        media = picked(dict.fromkeys(features, True), named, seen) if named or seen else None
        if media is None:
            held = ", ".join(features)
            raise InputError(f"data.root: no feature of {self.root} is a clip or picture ({held})")
        named = str(self.data.get("caption_key", ""))
        known = dict.fromkeys(features, True)
        return media, picked(known, named, (*CAPTION_KEYS, *texts)) or ""


def _pixels(feature: Any) -> bool:
    """Whether a feature is a picture, or frames: Image, Video, a Sequence or a Tensor of them."""
    if type(feature).__name__ in ("Image", "Video"):
        return True
    if type(feature).__name__ == "Sequence":
        return _pixels(feature.feature)
    shape = getattr(feature, "shape", None) or ()
    return type(feature).__name__ == "Tensor" and len(shape) in (3, 4) and shape[-1] in (1, 3)


def _line(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
