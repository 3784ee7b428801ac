"""Recipes: chains of phases, each beginning from the weights of those before it.

A finished phase leaves, under `<runs>/<recipe>/<phase>/weights/`, one half-precision safetensors
file per component and `phase.json`, which describes them; the JSON is written last, so a folder
that has it is whole. The next phase begins from these files with a fresh optimiser: a phase that
fits the machine is the unit that one runs, keeps and repeats.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
from ml_collections import ConfigDict

from mv2_jax import bundle, config, files, params
from mv2_jax.errors import InputError
from mv2_jax.train import loop
from mv2_jax.train.task import Component, Task

INDEX = "phase.json"


def known_recipes() -> list[str]:
    """Names of the recipes that ship in mv2_jax.configs, such as "toybox/vae"."""
    root = Path(str(importlib.import_module("mv2_jax.configs").__path__[0]))
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.py"))
    return sorted(
        name
        for name in names
        if not name.rpartition("/")[2].startswith("_")
        and "def get_config" in (root / f"{name}.py").read_text()
    )


def load(name: str) -> tuple[str, ConfigDict]:
    """The recipe of a name ("toybox/vae") or of a Python file: (its name, its configuration).

    Raises:
        InputError: there is no such recipe; the message names the nearest.
    """
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise InputError(f"recipe file {name} does not exist")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        short = path.stem
    else:
        short = name.strip("/").replace(".", "/")
        names = known_recipes()
        if short not in names:
            hint = config.nearest(short, names) or f"; known: {', '.join(names)}"
            raise InputError(f"unknown recipe {name!r}{hint}")
        module = importlib.import_module("mv2_jax.configs." + short.replace("/", "."))
    recipe = _config_of(module, name)
    for phase in recipe.order:
        recipe.phases[phase].name = f"{short}/{phase}"
    return short, recipe


def _config_of(module: ModuleType, name: str) -> ConfigDict:
    recipe = module.get_config() if hasattr(module, "get_config") else None
    if not isinstance(recipe, ConfigDict) or "order" not in recipe or "phases" not in recipe:
        raise InputError(f"{name} is no recipe: its get_config() must return train.phase.recipe()")
    return recipe


def components_in(folder: Path) -> dict[str, Component]:
    """The components of a weights folder: a finished phase's, or a cascade folder.

    Raises:
        InputError: the folder has neither index.
    """
    if (folder / INDEX).is_file():
        listed = json.loads((folder / INDEX).read_text())["components"]
        found = {
            name: (folder / entry["file"], config.from_dict(entry["config"]))
            for name, entry in listed.items()
        }
        return {name: Component(params.load(path), cfg) for name, (path, cfg) in found.items()}
    if (folder / bundle.INDEX).is_file():
        cascade = bundle.read(folder)
        return {
            name: Component(cascade.load(name), part.config)
            for name, part in cascade.components.items()
        }
    raise InputError(f"{folder} holds no weights: neither {INDEX} nor {bundle.INDEX} is there")


def folder_of(root: Path, source: str) -> Path:
    """Where a `begin` source lies: a folder, "recipe/phase", or a recipe (its newest phase).

    Raises:
        InputError: nothing finished lies there; the message says what to run.
    """
    if Path(source).is_dir():
        return Path(source)
    if (root / source / "weights" / INDEX).is_file():
        return root / source / "weights"
    done = sorted(
        (path.parent for path in (root / source).glob(f"*/weights/{INDEX}")),
        key=lambda folder: (folder / INDEX).stat().st_mtime,
    )
    if not done:
        raise InputError(
            f"this recipe begins from {source!r}, which has not finished under {root}: "
            f"run `mv2 train {source}` first, or point --set begin... at a weights folder"
        )
    return done[-1]


def begin_from(root: Path, short: str, recipe: ConfigDict, phase: str) -> dict[str, Component]:
    """What a phase starts with: `begin` sources, and (in a chain) above them its earlier phases.

    A later phase's component replaces an earlier one's of the same name. A phase of T2I that begins
    from a cascade folder takes T2I's own networks there, where it has some.

    Raises:
        InputError: a source is missing or lacks the component.
    """
    begin: dict[str, Component] = {}
    cfg = recipe.phases[phase]
    pictures = "t2i" in (cfg.task, cfg.get("stage"))
    sources = {source: components_in(folder_of(root, source)) for source in cfg.begin.values()}
    for name, source in cfg.begin.items():
        held = sources[source]
        own = bundle.PICTURE.get(name)
        there = own if pictures and own in held else name
        if there not in held:
            raise InputError(
                f"{source!r} holds no component {name!r}{config.nearest(name, held)}; "
                f"it holds {', '.join(sorted(held))}"
            )
        begin[name] = held[there]
    order = list(recipe.order) if recipe.get("chain", True) else [phase]
    for earlier in order[: order.index(phase)]:
        folder = root / short / earlier / "weights"
        if not (folder / INDEX).is_file():
            raise InputError(
                f"phase {phase!r} follows {earlier!r}, which has not finished under {root}: "
                f"run `mv2 train {short} --phase {earlier}` first"
            )
        begin.update(components_in(folder))
    return begin


def known_tasks() -> list[str]:
    """Names of the modules in mv2_jax.train.tasks that make tasks."""
    here = Path(__file__).parent / "tasks"
    return sorted(path.stem for path in here.glob("*.py") if not path.stem.startswith("_"))


def make_task(cfg: ConfigDict, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task of a phase; `folder` is the phase's own, for what it precomputes.

    Raises:
        InputError: an unknown task; the message names the nearest.
    """
    names = known_tasks()
    if cfg.task not in names:
        raise InputError(f"unknown task {cfg.task!r}{config.nearest(cfg.task, names)}")
    return importlib.import_module(f"mv2_jax.train.tasks.{cfg.task}").make(cfg, begin, folder)


def write_weights(
    folder: Path,
    task: Task,
    outcome: loop.Outcome,
    cfg: ConfigDict,
    begin: Mapping[str, Component],
) -> None:
    """The averaged weights of a phase in fp16, one file per component, and the index last.

    The index's `began` names the weights the phase began from by their digests, so that packing
    can prove that parts trained over one another belong together.
    """
    averaged = loop.ema_params(outcome)
    configs = task.configs(averaged)
    with files.whole(folder) as scratch:
        scratch.mkdir(parents=True)
        listed = {}
        for name, tree in task.components(averaged).items():
            file = f"{name}.safetensors"
            notes = {"phase": cfg.name, "config": config.to_dict(configs[name])}
            params.save(scratch / file, params.cast(tree, jnp.float16), notes)
            listed[name] = {
                "file": file,
                "digest": params.digest(params.load(scratch / file)),
                "config": config.to_dict(configs[name]),
                "sha256": files.sha256(scratch / file),
            }
        index = {
            "phase": cfg.name,
            "steps": int(outcome.state.step),
            "minutes": round(outcome.minutes, 2),
            "tflop": round(outcome.tflop, 2),
            "began": {name: params.digest(part.params) for name, part in begin.items()},
            "components": listed,
            **task.notes,
        }
        (scratch / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        # A folder cannot replace one that is not empty.
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Summary:
    """What came of a phase: "finished", "interrupted" or "kept" (it had finished before)."""

    phase: str
    state: str
    minutes: float
    tflop: float


def run_phase(root: Path, short: str, recipe: ConfigDict, phase: str, resume: bool) -> Summary:
    """Trains one phase and writes its weights, unless they are there and `resume`."""
    cfg = recipe.phases[phase]
    folder = root / short / phase
    index = folder / "weights" / INDEX
    if resume and index.is_file():
        kept = json.loads(index.read_text())
        return Summary(phase, "kept", kept["minutes"], kept["tflop"])
    begin = begin_from(root, short, recipe, phase)
    task = make_task(cfg, begin, folder)
    if not resume:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        shutil.rmtree(folder / "weights", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(cfg.to_json(indent=1) + "\n")
    outcome = loop.run(task, cfg, folder, resume=resume)
    if outcome.finished:
        write_weights(folder / "weights", task, outcome, cfg, begin)
    state = "finished" if outcome.finished else "interrupted"
    return Summary(phase, state, outcome.minutes, outcome.tflop)
