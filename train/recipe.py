"""Recipes: chains of phases, each beginning from the weights of those before it.

A finished phase leaves, under `<runs>/<recipe>/<phase>/weights/`, one half-precision safetensors
file per component and `phase.json`, which describes them; the JSON is written last, so a folder
that has it is whole. The next phase begins from these files with a fresh optimiser: a phase that
fits the machine is the unit that one runs, keeps and repeats. Beside `weights/` lie its settings
and the digests of what it began from: a phase is kept or resumed only where they are those asked
for now.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from mv2_jax import bundle, files, lookup, params
from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest, one_of
from mv2_jax.train import cascades, chosen, loop, lora, processes, unread
from mv2_jax.train.cascades import STAGES
from mv2_jax.train.latents import of_encoder
from mv2_jax.train.phase import ON_THE_WAY, RUNNING, difference
from mv2_jax.train.phase import phase as settings_of
from mv2_jax.train.task import TASKS, Component, Task
from mv2_jax.train.weights import INDEX, components_in, write_weights

SETTINGS = "config.json"  # in a phase's folder, as its last run was asked for
BEGAN = "began.json"  # there too: {component: digest of what it began from}
ORDER = "recipe.json"  # in a recipe's folder: its phases, for what begins from it

ENCODER = "vae/encoder"  # in BEGAN: of an autoencoder, that which makes latents


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
        one_of(short, known_recipes(), "recipe")
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


def folder_of(root: Path, source: str) -> Path:
    """Where a `begin` source lies: a folder, "recipe/phase", or a recipe (the last of its chain).

    Of a recipe without a last phase (arms, or phases left by an older version from a Python file)
    it is the only one that has finished.

    Raises:
        InputError: nothing finished lies there, or several phases; the message says what to run
            or to name.
    """
    if Path(source).is_dir():
        return Path(source)
    if (root / source / "weights" / INDEX).is_file():
        return root / source / "weights"
    done = sorted(path.parts[-3] for path in (root / source).glob(f"*/weights/{INDEX}"))
    last = _last(root, source)
    if last is None and len(done) > 1:
        raise InputError(
            f"this recipe begins from {source!r}, of whose phases none is the last: name one, "
            + " or ".join(f"{source}/{phase}" for phase in done)
        )
    wanted = last or (done[0] if done else None)
    if wanted not in done:
        which = f"{source!r}, whose last phase {last!r}" if last else f"{source!r}, which"
        others = f", name one that has ({', '.join(f'{source}/{p}' for p in done)})" if done else ""
        raise InputError(
            f"this recipe begins from {which} has not finished under {root}: "
            f"run `{_command(source)}` first{others}, or point --set begin... at a weights folder"
        )
    return root / source / wanted / "weights"


def _last(root: Path, short: str) -> str | None:
    """The last phase of a recipe's chain: as it ships, else as its last run noted it."""
    if short in known_recipes():
        recipe = load(short)[1]
        order, chain = list(recipe.order), recipe.get("chain", True)
    elif (root / short / ORDER).is_file():
        noted = json.loads((root / short / ORDER).read_text())
        order, chain = noted["order"], noted["chain"]
    else:
        return None
    return order[-1] if order and chain else None


def _command(source: str) -> str:
    """What to type to train a recipe, or "recipe/phase"."""
    names, (short, _, phase) = known_recipes(), source.rpartition("/")
    if source not in names and short in names:
        return f"mv2 train {short} --phase {phase}"
    return f"mv2 train {source}{'' if source in names else '.py'}"


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
    if cfg.get("cascade"):
        begin.update(cascades.parts(components_in(Path(cfg.cascade)), pictures))
    sources = {source: components_in(folder_of(root, source)) for source in cfg.begin.values()}
    for name, source in cfg.begin.items():
        held = sources[source]
        own = bundle.PICTURE.get(name)
        there = own if pictures and own in held else name
        if there not in held:
            raise InputError(
                f"{source!r} holds no component {name!r}{nearest(name, held)}; "
                f"it holds {', '.join(sorted(held))}"
            )
        begin[name] = held[there]
    order = list(recipe.order) if recipe.get("chain", True) else [phase]
    for earlier in order[: order.index(phase)]:
        folder = root / short / earlier / "weights"
        if not (folder / INDEX).is_file():
            raise InputError(
                f"phase {phase!r} follows {earlier!r}, which has not finished under {root}: "
                f"run `{_command(short)} --phase {earlier}` first"
            )
        begin.update(components_in(folder))
    return begin


def make_task(cfg: ConfigDict, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task of a phase; `folder` is the phase's own, for what it precomputes.

    Raises:
        InputError: an unknown task (the message names the nearest), or what is found makes none.
    """
    wants = "a function make(cfg, begin, folder)"
    make = lookup.find(cfg.task, TASKS, "task", fits=callable, wants=wants)
    task = make(cfg, begin, folder)
    if not isinstance(task, Task):
        raise InputError(f"task {cfg.task!r} makes a {type(task).__name__}, not a Task")
    task = lora.adapted(task, cfg) if cfg.lora.rank else chosen.restricted(task, cfg)
    return chosen.stored(task, cfg.frozen_dtype)


@dataclass(frozen=True)
class Summary:
    """What came of a phase: "finished", "interrupted" or "kept" (it had finished before)."""

    phase: str
    state: str
    minutes: float
    tflop: float


def run_phase(
    root: Path, short: str, recipe: ConfigDict, phase: str, resume: bool, afresh: bool = False
) -> Summary:
    """Trains one phase and writes its weights, unless they are there and `resume`.

    Args:
        resume: False forgets what an earlier run of the phase left.
        afresh: so does an earlier run that was asked for otherwise, in any way that changes what
            comes of it; else such a run is an error.

    Raises:
        InputError: weights to begin from are missing, settings do not hold, the phase was run
            before with others or from other weights, or its loss is no longer finite.
    """
    cfg = recipe.phases[phase]
    folder = root / short / phase
    index = folder / "weights" / INDEX
    done, begin, odd = resume and index.is_file(), None, ""
    # A finished phase is in no need of its sources: they may be gone, or in training again.
    with contextlib.suppress(InputError) if done else contextlib.nullcontext():
        begin = begin_from(root, short, recipe, phase)
    if resume:
        odd = changed(folder, cfg, begin, afresh)
    if odd and not afresh:
        raise InputError(_refusal(folder, odd, recipe.order))
    if done and not odd:
        kept = json.loads(index.read_text())
        return Summary(phase, "kept", kept["minutes"], kept["tflop"])
    if begin is None:
        begin = begin_from(root, short, recipe, phase)
    task = make_task(cfg, begin, folder)
    if odd:
        processes.say(f"phase {phase} {odd}: it is trained anew")
    processes.wait(f"{cfg.name}: all have read what the first now changes")
    if processes.first():
        if odd or not resume:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            shutil.rmtree(folder / "weights", ignore_errors=True)
        _note(folder, recipe, cfg, begin)
    processes.wait(f"{cfg.name}: the folder is in order")
    outcome = _trained(task, cfg, folder, resume)
    if outcome.finished:
        write_weights(folder / "weights", task, outcome, cfg, begin)
    processes.wait(f"{cfg.name}: the weights are written")
    state = "finished" if outcome.finished else "interrupted"
    return Summary(phase, state, outcome.minutes, outcome.tflop)


def changed(
    folder: Path, cfg: ConfigDict, begin: Mapping[str, Component] | None, strict: bool = False
) -> str:
    """How what a phase's folder holds was asked for otherwise than now, in words; "" where not.

    What an older version left without a note of it is taken as it is.

    Args:
        begin: what the phase would begin from now; None where that is unknown.
        strict: also what a person may change half-way (`ON_THE_WAY`) counts, and the decoder of an
            autoencoder whose latents are learnt from.
    """
    done = (folder / "weights" / INDEX).is_file()
    saved = any(path.name.isdigit() for path in (folder / "checkpoints").glob("*"))
    if not (done or saved) or not (folder / SETTINGS).is_file():
        return ""
    # A setting that an older version did not have is at its default.
    old = settings_of(**json.loads((folder / SETTINGS).read_text()))
    free = RUNNING if done or strict else ON_THE_WAY
    free = (*free, *(unread.off(old).keys() & unread.off(cfg).keys()))
    if cfg.task in STAGES:  # how its sheets are drawn
        free = (*free, "sample")
    odd = difference(*(json.loads(settings.to_json()) for settings in (old, cfg)), free)
    if odd:
        return f"was trained with {odd}"
    if (folder / BEGAN).is_file():
        was = json.loads((folder / BEGAN).read_text())
    elif done:
        was = json.loads((folder / "weights" / INDEX).read_text())["began"]
    else:
        return ""
    now = _digests(begin) if begin is not None else was
    unseen = set() if ENCODER in was else {ENCODER}
    if not strict and cfg.task != "vae":
        unseen.add("vae")  # a decoder that was trained on since makes no other latents
    for name in sorted({*was, *now} - unseen):
        if was.get(name) != now.get(name):
            return f"began from other weights of {name!r} than it would now"
    return ""


def _digests(begin: Mapping[str, Component]) -> dict[str, str]:
    found = {name: params.digest(part.params) for name, part in begin.items()}
    return {**found, ENCODER: of_encoder(begin["vae"].params)} if "vae" in begin else found


def _refusal(folder: Path, odd: str, order: tuple[str, ...]) -> str:
    setting = odd.startswith("was trained") and len(order) > 1
    other = "; --set PHASE.NAME=VALUE is for another phase alone" if setting else ""
    return (
        f"phase {folder.name!r} in {folder} {odd}: add --phase {folder.name} --fresh to train it "
        f"anew{other}"
    )


def _note(
    folder: Path, recipe: ConfigDict, cfg: ConfigDict, begin: Mapping[str, Component]
) -> None:
    """Writes down what a phase is asked for, in its folder and in the recipe's above it."""
    folder.mkdir(parents=True, exist_ok=True)
    order = {"order": list(recipe.order), "chain": recipe.get("chain", True)}
    for path, text in (
        (folder.parent / ORDER, json.dumps(order, indent=1)),
        (folder / BEGAN, json.dumps(_digests(begin), indent=1)),
        (folder / SETTINGS, cfg.to_json(indent=1)),
    ):
        with files.whole(path) as scratch:
            scratch.write_text(text + "\n")


def _trained(task: Task, cfg: ConfigDict, folder: Path, resume: bool) -> loop.Outcome:
    """`loop.run`; that it diverged is told as an InputError, for it comes of the settings."""
    try:
        return loop.run(task, cfg, folder, resume=resume)
    except FloatingPointError as error:
        raise InputError(str(error)) from None
