"""The weights that a finished phase leaves: one file per component, described by `phase.json`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from mv2_jax import bundle, config, files, params
from mv2_jax.errors import InputError
from mv2_jax.train import loop, processes, record
from mv2_jax.train.state import decays
from mv2_jax.train.task import Component, Params, Task

INDEX = "phase.json"


def components_in(folder: Path) -> dict[str, Component]:
    """The components of a weights folder: a finished phase's, or a cascade folder.

    Raises:
        InputError: the folder has neither index.
    """
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text())
        listed, words = index["components"], index.get("tokenizer")
        found = {
            name: (folder / entry["file"], config.from_dict(entry["config"]))
            for name, entry in listed.items()
        }
        return {
            name: Component(params.load(path), cfg, words if _reads(name) else None)
            for name, (path, cfg) in found.items()
        }
    if (folder / bundle.INDEX).is_file():
        cascade = bundle.read(folder)
        return {
            name: Component(
                cascade.load(name), part.config, cascade.tokenizer if _reads(name) else None
            )
            for name, part in cascade.components.items()
        }
    raise InputError(f"{folder} holds no weights: neither {INDEX} nor {bundle.INDEX} is there")


def _reads(name: str) -> bool:
    """Whether a component reads prompts."""
    return "text_encoder" in name


def write_weights(
    folder: Path,
    task: Task,
    outcome: loop.Outcome,
    cfg: ConfigDict,
    begin: Mapping[str, Component],
) -> None:
    """The averaged weights of a phase in fp16, one file per component, and the index last.

    The index's `began` names the weights the phase began from by their digests, so that packing
    can prove that parts trained over one another belong together. Averages that were not chosen
    lie below, in `ema_0.99` and so on, each a folder of weights by itself.
    """
    kept, lengths = loop.averages(outcome), decays(cfg)
    if not processes.first():
        return
    averaged = kept[outcome.chosen]
    if task.outcome is not None:
        processes.say(task.outcome(averaged))
    index = {
        "phase": cfg.name,
        "steps": int(outcome.state.step),
        "minutes": round(outcome.minutes, 2),
        "tflop": round(outcome.tflop, 2),
        "began": {name: params.digest(part.params) for name, part in begin.items()},
        "validation": {f"{decay:g}": error for decay, error in zip(lengths, outcome.errors)},
        **task.notes,
    }
    if len(kept) > 1:
        why = f", of the lowest validation error ({index['validation']})" if outcome.errors else ""
        processes.say(f"the weights are the average of decay {lengths[outcome.chosen]:g}{why}")
    with files.whole(folder) as scratch:
        _write(scratch, task, averaged, {**index, "ema": lengths[outcome.chosen]})
        for number, (decay, tree) in enumerate(zip(lengths, kept)):
            if number != outcome.chosen:
                _write(scratch / f"ema_{decay:g}", task, tree, {**index, "ema": decay})
        for path in task.files(averaged, scratch) if task.files else ():
            processes.say(f"{folder / path.name}: {path.stat().st_size / 1e6:.1f} MB")
        (scratch / record.RUN).write_text(json.dumps(record.of(cfg), indent=1) + "\n")
        # A folder cannot replace one that is not empty.
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, task: Task, averaged: Params, index: dict[str, Any]) -> None:
    """One average's components, and the index."""
    configs, listed = task.configs(averaged), {}
    folder.mkdir(parents=True)
    for name, tree in task.components(averaged).items():
        file = f"{name}.safetensors"
        notes = {"phase": index["phase"], "config": config.to_dict(configs[name])}
        params.save(folder / file, params.cast(tree, jnp.float16), notes)
        listed[name] = {
            "file": file,
            "digest": params.digest(params.load(folder / file)),
            "config": config.to_dict(configs[name]),
            "sha256": files.sha256(folder / file),
        }
    whole = {**index, "components": listed}
    (folder / INDEX).write_text(json.dumps(whole, indent=1) + "\n")
