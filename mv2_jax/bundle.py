"""The cascade folder: everything one cascade needs, described, checksummed and licensed.

A folder holds `cascade.json`, one safetensors file per component, and any licence texts:

    cascade.json          schema, name, components, stages, defaults, tokenizer, spatial
    spatial.safetensors   parameters in half precision, '/'-joined names
    ...

`spatial` in the JSON is the digest of the stored spatial tree. I2V and V2V (and T2I, unless the
folder holds a `t2i_unet`) share that one tree, and every component trained over it records the
digest it was trained over (`over`); a folder where they differ is refused.

Reading costs one small JSON and a look at the files' sizes. A component's parameters are read,
and its checksum compared, when first asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mv2_jax import config, config_types, files, params
from mv2_jax import numbers as sets
from mv2_jax.errors import InputError
from mv2_jax.lookup import one_of
from mv2_jax.remote import Remote
from mv2_jax.stages import vfi_table

SCHEMA = 1
INDEX = "cascade.json"
SHIPPED = Path(__file__).parent / "weights" / "toybox"
# What T2I calls its networks -> the component that holds its own, where a folder has one.
PICTURE = {
    "text_encoder": "t2i_text_encoder",
    "text_encoder_2": "t2i_text_encoder_2",
    "spatial": "t2i_unet",
    "vae": "t2i_vae",
}
CONTROLS = ("control", *(f"control_{number}" for number in range(2, 10)))  # ControlNets
# What every stage of a folder of UNets finds there.
NEEDED = (
    "text_encoder",
    "vae",
    "spatial",
    "motion_i2v",
    "motion_v2v",
    "image_encoder",
    "image_attn",
    "control",
)
# What it may lack: an interpolator, SDXL's second text encoder, T2I's own, further ControlNets.
OPTIONAL = (*vfi_table.COMPONENTS, "text_encoder_2", *PICTURE.values(), *CONTROLS[1:])
COMPONENTS = (*NEEDED, *OPTIONAL)

_KEYS = ("schema", "name", "components", "stages", "defaults", "tokenizer", "spatial")
_COMPONENT_KEYS = ("config", "file", "bytes", "sha256", "licence", "source", "over")


@dataclass(frozen=True)
class Part:
    """A component on its way into a folder: parameters, what they configure, whose they are.

    `over` is `params.digest` of the stored (half-precision) spatial tree that the component was
    trained over, where it was trained over one. One Part under two names is stored once.
    """

    tree: Mapping[str, Any] | params.Pending
    config: Any
    licence: str
    source: str
    over: str | None = None


@dataclass(frozen=True)
class StoredComponent:
    """What the folder says of one component. `size` is its file's size in bytes."""

    name: str
    config: Any
    file: str
    size: int
    sha256: str
    licence: str
    source: str
    over: str | None = None

    @property
    def rules(self) -> tuple[Any, ...]:
        """Sharding rows of a network from outside the package: see `models.backbone`."""
        return getattr(self.config, "rules", ())


@dataclass(frozen=True)
class Bundle:
    """A cascade folder that has been read and found in order.

    `stages` maps a stage's name to its StageConfig, `defaults` a stage's name to the numbers
    it likes best, such as {"t2i": {"guidance": 4.0}}; `tokenizer` is the tokenizer's own JSON.
    """

    folder: Path | Remote
    name: str
    components: dict[str, StoredComponent]
    stages: dict[str, Any]
    defaults: dict[str, dict[str, float]]
    tokenizer: Any
    spatial: str | None

    def config(self, name: str) -> Any:
        """The config of a component. Raises InputError where the folder lacks it."""
        return self._component(name).config

    @property
    def numbers(self) -> sets.Numbers:
        """Every stage's numbers, as the weights like them best; InputError for unsound ones."""
        return sets.read(self.defaults, f"defaults of {self.folder}")

    def load(self, name: str) -> params.Tree:
        """The parameters of a component as NumPy arrays in the stored type, read at every call.

        Raises:
            InputError: the folder lacks the component, or its file is missing or damaged.
        """
        component = self._component(name)
        self._check_sum(component)
        try:
            tree = params.load(self.folder / component.file)
        except ValueError as error:
            raise InputError(f"weights: {error}") from None
        if name == "spatial" and params.digest(tree) != self.spatial:
            raise InputError(
                f"{self.folder}: the spatial weights are not those the other components "
                "were trained over; pack the folder again"
            )
        return tree

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Compares the checksums of the named components, or of all.

        Raises:
            InputError: a component is absent, or its file is missing or damaged.
        """
        for name in self.components if names is None else names:
            self._check_sum(self._component(name))

    @property
    def digest(self) -> str:
        """SHA-256 that changes with any weight, any config, the schedules or the tokenizer."""
        content = {
            "components": {
                name: [config.to_dict(c.config), c.sha256] for name, c in self.components.items()
            },
            # A folder that names no rule has the digest of one that names the usual.
            "stages": _to_json(self.stages, config.USUAL_RULE, None),
            "tokenizer": self.tokenizer,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _component(self, name: str) -> StoredComponent:
        if name not in self.components:
            held = ", ".join(self.components) or "nothing"
            raise InputError(f"{self.folder} has no component {name!r}; it holds {held}")
        return self.components[name]

    def _check_sum(self, component: StoredComponent) -> None:
        path = self.folder / component.file
        try:
            actual = files.known_sha256(path)
        except OSError as error:
            raise InputError(f"cannot read weights {path}: {_reason(error)}") from None
        if actual != component.sha256:
            raise InputError(
                f"{path} is damaged: its checksum is not the one in {INDEX}; install or pack it "
                "again"
            )


def write(
    folder: str | os.PathLike[str],
    components: Mapping[str, Part],
    stages: Mapping[str, Any],
    tokenizer: Any,
    *,
    name: str,
    defaults: Mapping[str, Mapping[str, float]] | None = None,
    texts: Mapping[str, str] | None = None,
    dtype: Any = np.float16,
    replace: bool = False,
) -> Bundle:
    """Writes a cascade folder, which appears whole or not at all, and reads it back.

    Parameters are cast to `dtype`; pending ones keep their own type, and are made here, one
    component after the other. `texts` are further files by name, such as licences.
    `replace` allows an existing cascade folder to be replaced.

    Raises:
        InputError: the folder exists (and `replace` is false, or it is no cascade folder); a
            component or stage is unknown; one was trained over other spatial weights; a number
            does not fit `dtype`.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    _known_components({name: part.config for name, part in components.items()})
    replaces = files.occupied(folder, INDEX, replace)
    old = folder.with_name(f".{folder.name}.old")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with files.whole(folder) as scratch:
        scratch.mkdir()
        index: dict[str, Any] = {
            "schema": SCHEMA,
            "name": name,
            "spatial": None,
            "components": {},
            "stages": _to_json(stages, None, config.USUAL_RULE),
            "defaults": {key: dict(numbers) for key, numbers in (defaults or {}).items()},
            "tokenizer": tokenizer,
        }
        for key, part in components.items():
            twin = next((k for k in index["components"] if components[k] is part), None)
            if twin is None:
                index["components"][key] = _write_part(scratch, key, part, dtype)
            else:
                index["components"][key] = dict(index["components"][twin])
            if key == "spatial":
                index["spatial"] = params.file_digest(scratch / f"{key}.safetensors")
        for file, text in (texts or {}).items():
            (scratch / file).write_text(text, encoding="utf-8")
        text = json.dumps(index, indent=1, ensure_ascii=False) + "\n"
        (scratch / INDEX).write_text(text, encoding="utf-8")
        read(scratch)  # whatever is wrong is found before anything is in place
        if replaces:
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
    shutil.rmtree(old, ignore_errors=True)
    return read(folder)


def read(folder: str | os.PathLike[str] | None = None) -> Bundle:
    """Reads a cascade folder; the one that ships with the package by default.

    Raises:
        InputError: the folder, its index or a file is missing, damaged or of another version;
            an unknown key is named together with the nearest known one.
    """
    place = SHIPPED if folder is None else files.place(folder)
    index, where = _read_index(place), str(place / INDEX)
    try:
        kinds = {"name": str, "components": dict, "stages": dict, "defaults": dict}
        for key, kind in kinds.items():
            if not isinstance(index[key], kind):
                raise ValueError(f"{key!r} is not {'text' if kind is str else 'an object'}")
        components = {
            name: _read_component(place, name, data) for name, data in index["components"].items()
        }
        _known_components({name: part.config for name, part in components.items()})
        stages = {name: _from_json(data) for name, data in index["stages"].items()}
        for name, stage in stages.items():
            one_of(name, sets.STAGES, "stage")
            if not isinstance(stage, dict if name == "vfi" else config.StageConfig):
                raise ValueError(f"stages: {name} is of the wrong kind")
        for name in index["defaults"]:
            one_of(name, sets.STAGES, "stage", "defaults")
        config_types.check_numbers(index["defaults"])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, InputError) and str(place) in str(error):
            raise
        raise InputError(f"{where}: {error}") from None
    for component in components.values():
        if component.over not in (None, index["spatial"]):
            raise InputError(
                f"{where}: {component.name} was trained over other spatial weights than the "
                "folder's; pack them together"
            )
    return Bundle(
        folder=place,
        name=index["name"],
        components=components,
        stages=stages,
        defaults=index["defaults"],
        tokenizer=index["tokenizer"],
        spatial=index["spatial"],
    )


def _read_index(folder: Path | Remote) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = files.read_json(path)
    except FileNotFoundError:
        raise InputError(f"no weights at {folder}: there is no {INDEX} in it") from None
    except OSError as error:
        raise InputError(f"cannot read weights {path}: {_reason(error)}") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is damaged: it is not JSON ({error})") from None
    if not isinstance(index, dict):
        raise InputError(f"{path} is damaged: it is not a JSON object")
    if index.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has schema {index.get('schema')!r}; this version of mv2 reads {SCHEMA}"
        )
    try:
        _exactly(index, _KEYS, "key")
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return index


def _reason(error: OSError) -> str:
    return (error.strerror or "error").lower()


def _read_component(folder: Path | Remote, name: str, data: dict[str, Any]) -> StoredComponent:
    _exactly(data, _COMPONENT_KEYS, f"{name}: key")
    file = data["file"]
    if not isinstance(file, str) or Path(file).name != file:
        raise ValueError(f"{name}: {file!r} is not a file name within the folder")
    path = folder / file
    if not path.is_file():
        raise InputError(f"weights are incomplete: {path} is missing")
    for key in ("bytes", "sha256", "licence", "source"):
        if not isinstance(data[key], int if key == "bytes" else str):
            raise ValueError(f"{name}: {key!r} is of the wrong kind")
    if path.stat().st_size != data["bytes"]:
        raise InputError(
            f"{path} is damaged: {path.stat().st_size} bytes instead of {data['bytes']}; install "
            "or pack it again"
        )
    return StoredComponent(
        name=name,
        config=config.from_dict(data["config"]),
        file=file,
        size=data["bytes"],
        sha256=data["sha256"],
        licence=data["licence"],
        source=data["source"],
        over=data["over"],
    )


def _write_part(folder: Path, name: str, part: Part, dtype: Any) -> dict[str, Any]:
    path = folder / f"{name}.safetensors"
    tree = part.tree
    if not isinstance(tree, params.Pending):
        with np.errstate(over="ignore"):  # the check below names the leaf
            tree = params.cast(tree, dtype)
        _check_finite(name, tree)
    params.save(path, tree, {"component": name, "licence": part.licence, "source": part.source})
    return {
        "config": config.to_dict(part.config),
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": files.sha256(path),
        "licence": part.licence,
        "source": part.source,
        "over": part.over,
    }


def _check_finite(name: str, tree: params.Tree) -> None:
    for leaf_name, leaf in params.flatten(tree).items():
        if not np.all(np.isfinite(np.asarray(leaf))):
            raise InputError(f"{name}: {leaf_name} has numbers that {leaf.dtype} cannot hold")


def _known_components(configs: Mapping[str, Any]) -> None:
    """Refuses unknown names, but for interpolators and networks from outside the package."""
    own = [name for name, cfg in configs.items() if type(cfg).__module__.startswith("mv2_jax.")]
    for name in own:
        if not vfi_table.is_component(name):
            one_of(name, COMPONENTS, "component")


def _exactly(data: Mapping[str, Any], keys: tuple[str, ...], what: str) -> None:
    for key in data:
        one_of(key, keys, what)
    for key in keys:
        if key not in data:
            raise ValueError(f"{what} {key!r} is missing")


def _to_json(stages: Mapping[str, Any], before: str | None, after: str | None) -> dict[str, Any]:
    """The stages, with another guidance rule where one has the rule `before`."""
    return {
        name: stage if isinstance(stage, dict) else config.to_dict(stage.ruled(before, after))
        for name, stage in stages.items()
    }


def _from_json(data: dict[str, Any]) -> Any:
    return config.from_dict(data) if "class" in data else data
