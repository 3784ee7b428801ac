"""What kind of storage a path is, where nobody says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mv2_jax.lookup import find
from mv2_jax.train.media import paths
from mv2_jax.train.media.records import RECORDS, Records, root_of

# Files that tell a kind, in the order in which they are looked for.
SIGNS = (
    ("tfds", ("dataset_info.json",)),
    ("datasets", ("dataset_dict.json", "state.json")),
    ("array_record", (".array_record", ".arrayrecord")),
    ("tars", (".tar",)),
)


def kind(root: str) -> str:
    """A word of `RECORDS` for a path: by its ending, or by what lies at the top of the folder."""
    for name, endings in SIGNS:
        if any(root.endswith(each) or f"{each}-" in root for each in endings):
            return name
    if not paths.remote(root) and not Path(root).is_dir():
        return "folder"
    names = paths.top(root)
    for name, endings in SIGNS:
        if any(one.endswith(each) or f"{each}-" in one for one in names for each in endings):
            return name
    return "folder"


def auto(data: Mapping[str, Any]) -> Records:
    """The records of `data.root`, of the kind that it looks like."""
    return find(kind(root_of(data, "a folder of clips and pictures")), RECORDS, "data source")(data)


auto.records = True
