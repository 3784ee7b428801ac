"""A Hugging Face `datasets` folder: what `save_to_disk` wrote, or files that the library reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mv2_jax.errors import InputError
from mv2_jax.train import needs
from mv2_jax.train.media.records import CAPTION_KEYS, Content, Records, picked, root_of, said

PACKAGES = {"datasets": "datasets"}


class HubSet(Records):
    """The split `data.split` of the data set in the folder `data.root`, by the library `datasets`.

    Its clips or pictures are its Video or Image column, or the one that `data.file_key` names;
    captions are the column `data.caption_key`, or one of the usual names.

    Raises:
        InputError: the library is not installed, it cannot read the folder, or no column serves.
    """

    settings = ("split", "file_key", "caption_key")

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(data)
        if not needs.there("datasets"):
            raise InputError("data.source=datasets needs the library: pip install datasets")
        self.root = root_of(data, "a folder that the library `datasets` reads")
        self.rows = self._rows(str(data.get("split", "train")))
        held = dict.fromkeys(self.rows.column_names, True)
        kinds = {name: type(kind).__name__ for name, kind in self.rows.features.items()}
        seen = [name for name, kind in kinds.items() if kind in ("Image", "Video")]
        media = picked(held, str(data.get("file_key", "")), (*seen, "video", "image"))
        if media is None:
            raise InputError(f"data.root: no column of {', '.join(held)} is an image or a video")
        self.media = media
        self.words = picked(held, str(data.get("caption_key", "")), CAPTION_KEYS) or ""
        if media in seen:  # bytes or a path, which are decoded as all files are
            kind = type(self.rows.features[media])(decode=False)
            self.rows = self.rows.cast_column(media, kind)

    def __len__(self) -> int:
        return len(self.rows)

    def facts(self) -> Mapping[str, Any]:
        return {"datasets": self.rows._fingerprint, "rows": len(self), "key": self.media}

    def name(self, number: int) -> str:
        return f"{self.root}[{number}]"

    def content(self, number: int) -> Content:
        held = self.rows[number][self.media]
        if isinstance(held, Mapping):
            held = held.get("bytes") or held.get("path")
        if not isinstance(held, (bytes, str)):
            raise InputError(f"column {self.media!r} holds neither bytes nor a path")
        return held

    def captions(self, number: int) -> Sequence[str]:
        return said(self.rows[number][self.words]) if self.words else ()

    def _rows(self, split: str) -> Any:
        import datasets

        try:
            saved = any((Path(self.root) / n).exists() for n in ("dataset_dict.json", "state.json"))
            held = datasets.load_from_disk(self.root) if saved else datasets.load_dataset(self.root)
            return held[split] if isinstance(held, Mapping) else held
        except Exception as error:  # of many kinds
            line = " ".join(str(error).split())[:200]
            raise InputError(f"data.root: `datasets` cannot read {self.root}: {line}") from None
