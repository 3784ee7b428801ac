"""A request made ready: all that can be wrong with it is found here, before the first stage runs.

`Checked` remembers the folders of weights that it read, so that many requests cost one look.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mv2_jax import bundle as bundles
from mv2_jax.configs import presets
from mv2_jax.diffusion.names import SPACINGS
from mv2_jax.errors import InputError
from mv2_jax.infer import adapt, choices, interpolators, media, meshes, settings, words
from mv2_jax.infer.request import Request
from mv2_jax.infer.settings import SETTINGS
from mv2_jax.numbers import DIFFUSION

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle
    from mv2_jax.cascade import Cascade
    from mv2_jax.infer.settings import Numbers

_LARGEST = 4096
_OF_WINDOWS = {
    "--windows": "context",
    "--window": "window",
    "--overlap": "overlap",
    "--fuse": "blend",
}


@dataclass(frozen=True, eq=False)
class Ready:
    """A request in order, with all that its stages take.

    `bundle` is the weights as the folder has them, `sized` with the sizes and choices asked for.
    `numbers` are those of the sidecar, `used` those that the stages are given. `picture` and
    `clip` are the user's own, uint8; `shown` is what else the video stages are shown, `merged` the
    LoRAs.
    """

    request: Request
    bundle: Bundle
    sized: Any
    numbers: Numbers
    used: Numbers
    tokenizer: Any
    picture: np.ndarray | None = None
    clip: np.ndarray | None = None
    shown: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    merged: adapt.Merged | None = None

    def form(self, prompt: str) -> tuple[Any, ...]:
        """Rows of tokens, whether parts are marked, and how the prompt changes, by stage: a batch
        of one form runs one program."""
        from mv2_jax.text import emphasis, named, of_stage, timing

        made = []
        for stage in DIFFUSION:
            extent = int(self.used[stage]["steps"]), self.sized.stages[stage].frames
            words = of_stage(self.tokenizer, stage)
            said = prompt, self.request.away(stage)
            both = [timing.timed(named(words, x), *extent) for x in said]
            texts = [text for each in both for text in each.texts]
            marked = emphasis.rows(words, texts)
            changes = [each.shares.shape for each in both]
            made.append((marked.ids.shape[1], bool((marked.weights != 1).any()), *changes))
        return tuple(made)

    @property
    def alike(self) -> str:
        """Equal for requests whose videos one batch can hold: they differ in prompt and seed."""
        asked = self.request
        files = [asked.image, asked.video, *asked.looks, *asked.controls.values()]
        sources = [source and source.sha256 for source in files]
        away = [asked.away(stage) for stage in DIFFUSION]
        told = [
            away,
            sources,
            list(asked.controls),
            self.sized.stages["v2v"].size,
            asked.choices,
            asked.tell,
            [lora.plain() for lora in asked.loras],
        ]
        folder = str(self.bundle.folder)
        return json.dumps([told, self.numbers, folder, self.bundle.digest], sort_keys=True)


class Checked:
    """Makes requests ready."""

    def __init__(self, mesh: str | None = None) -> None:
        self._mesh = mesh
        self._bundles: dict[Any, Any] = {}
        self._tokenizers: dict[str, Any] = {}
        self._sound: set[str] = set()

    def __call__(self, request: Request) -> Ready:
        """The request, made ready.

        Raises:
            InputError: anything wrong with it, the files it names, or the weights.
        """
        return self.starts(self.numbers(request))

    def numbers(self, request: Request) -> Ready:
        """The request with its weights and numbers. Raises InputError."""
        bundle = self._bundle(request)
        sized = choices.apply(with_size(bundle, request.size), request.choices)
        numbers = settings.resolve(request.given, request.base, sized)
        used, network = numbers, interpolator(sized)
        if network == "none":
            used = _keyframes_alone(numbers)
        tokenizer = self._tokenizer(bundle)
        if request.before is None:
            words.check(request.prompts, tokenizer)
        return Ready(request, bundle, sized, numbers, used, tokenizer)

    def starts(self, ready: Ready) -> Ready:
        """It with the user's picture or clip, and weights found undamaged. Raises InputError."""
        sized, numbers, network = ready.sized, ready.numbers, interpolator(ready.sized)
        picture, clip = _starts(ready.request, sized, numbers)
        shown = _shown(ready.request, sized, numbers)
        if network not in (None, "none"):
            interpolators.fits(network, int(numbers["vfi"]["between"]) + 1, "--between 1", sized)
        if str(sized.folder) not in self._sound:
            sized.verify(meshes.share(self._mesh, list(sized.components)))
            self._sound.add(str(sized.folder))
        merged = adapt.Merged(sized, ready.request.loras) if ready.request.loras else None
        return dataclasses.replace(ready, picture=picture, clip=clip, shown=shown, merged=merged)

    def _bundle(self, request: Request) -> Any:
        preset = request.choices.get("all", {}).get("preset")
        key = (str(request.weights), preset)
        if key not in self._bundles:
            self._bundles[key] = presets.complete(bundles.read(request.weights), preset)
        return self._bundles[key]

    def _tokenizer(self, bundle: Bundle) -> Any:
        from mv2_jax import text as tokenizers

        folder = str(bundle.folder)
        if folder not in self._tokenizers:
            self._tokenizers[folder] = tokenizers.from_json(bundle.tokenizer)
        return self._tokenizers[folder]


def check_steps(bundle: Bundle, numbers: Numbers, start: str = "t2i") -> None:
    """Refuses a number of steps that a stage's sampler and schedule cannot make.

    Args:
        start: the first stage to run.

    Raises:
        InputError: the flag is named, and why.
    """
    from mv2_jax.stages import chain

    for stage in DIFFUSION[DIFFUSION.index(start) :]:
        cfg, steps = bundle.stages[stage], int(numbers[stage]["steps"])
        try:
            chain.program(cfg, steps)
        except ValueError as error:
            raise InputError(f"--{stage}-steps {steps} with {cfg.sampler}: {error}") from None


def check_told(request: Request, cascade: Cascade) -> None:
    """Refuses a `--tell` that no stage of the video would hear. Raises InputError."""
    if not request.tell:
        return
    stages = [cascade.stage(name) for name in DIFFUSION[DIFFUSION.index(request.start) :]]
    own = {each.name for stage in stages for each in stage.conditions if hasattr(each, "read")}
    for name in request.tell:
        if name not in own:
            known = f"; it has {', '.join(sorted(own))}" if own else ""
            raise InputError(f"--tell {name}: these weights have no such condition{known}")


def heard(ready: Ready, cascade: Cascade) -> tuple[Numbers, list[str]]:
    """The numbers that are used without those that change nothing; and a line for each such that
    was asked for, by a flag in some of its stages, or by an earlier video.

    Raises:
        InputError: a flag has no effect in any stage of the video.
    """
    request, lines = ready.request, []
    run = DIFFUSION[DIFFUSION.index(request.start) :]
    deaf = {stage: cascade.idle(stage, **ready.used[stage]) for stage in run}
    said = [(s.flag, s.name, s.stages) for s in SETTINGS if request.given.get(s.dest) is not None]
    for flag, name, stages in said:
        where = [stage for stage in stages if name in deaf.get(stage, {})]
        if not where:
            continue
        if not any(
            stage not in where for stage in stages if stage not in DIFFUSION or stage in run
        ):
            raise InputError(f"{flag} has no effect: {deaf[where[0]][name]}")
        lines.append(f"{flag} has no effect in {_listed(where)}: {deaf[where[0]][name]}")
    for stage, text in request.negatives.items():
        if text and "negative" in deaf.get(stage, {}):
            lines.append(f"--{stage}-negative has no effect: {deaf[stage]['negative']}")
    rest = [stage for stage in run if stage not in request.negatives]
    if request.negative and rest and all("negative" in deaf[stage] for stage in rest):
        lines.append(f"--negative has no effect: {deaf[rest[0]]['negative']}")
    given = {(stage, name) for _, name, stages in said for stage in stages}
    for stage in run:
        liked = vars(ready.sized.numbers[stage])
        for name in deaf[stage].keys() & request.base.get(stage, {}).keys():
            if (stage, name) not in given and ready.used[stage][name] != liked[name]:
                told = f"the earlier video's {stage} {name} has no effect: {deaf[stage][name]}"
                lines.append(told)
    for name in ready.shown:
        if not any(name in cascade.inputs(stage) for stage in run if stage != "t2i"):
            flag = "--look" if name == "looks" else "--control"
            raise InputError(f"{flag} has no effect: no stage of these weights has a place for it")
    lines += _unheard(ready, run)
    used = {
        stage: {name: value for name, value in values.items() if name not in deaf.get(stage, {})}
        for stage, values in ready.used.items()
    }
    return used, lines


def _unheard(ready: Ready, run: Sequence[str]) -> Iterator[str]:
    """A line for each choice that changes nothing in some of the stages that it was made for."""
    for flag, name, why in (
        *((flag, name, "the frames fit into one window") for flag, name in _OF_WINDOWS.items()),
        ("--spacing", "spacing", "the sampler has timesteps of its own"),
        ("--steps-offset", "steps_offset", "the timesteps are not spaced as leading ones are"),
    ):
        chosen = [stage for stage in run if name in ready.request.choices.get(stage, {})]
        deaf = [stage for stage in chosen if not _hears(ready, stage, name)]
        if deaf:
            where = "" if deaf == chosen else f" in {_listed(deaf)}"
            yield f"{flag} has no effect{where}: {why}"


def _hears(ready: Ready, stage: str, name: str) -> bool:
    """Whether another value would have made another chain."""
    cfg, steps = ready.sized.stages[stage], int(ready.used[stage]["steps"])
    if name in _OF_WINDOWS.values():
        return cfg.frames > cfg.windows[0]
    from mv2_jax.stages import chain

    own = getattr(cfg.schedule, name)
    others = SPACINGS if name == "spacing" else (own, own + 1)
    schedules = (dataclasses.replace(cfg.schedule, **{name: other}) for other in others)
    try:
        grids = [
            chain.program(dataclasses.replace(cfg, schedule=schedule), steps)[1]
            for schedule in schedules
        ]
    except ValueError:  # one that it cannot make
        return True
    return not all(np.array_equal(grids[0].t, grid.t) for grid in grids)


def _listed(stages: Iterable[str]) -> str:
    return " and ".join(stage.upper() for stage in stages)


def told(cascade: Cascade, stage: str, tell: Mapping[str, str], count: int) -> dict[str, Any]:
    """The raw inputs of a stage's own conditions for `count` samples, from what a user wrote.

    Raises:
        InputError: words that a condition does not understand.
    """
    made = {}
    for each in cascade.stage(stage).conditions if tell else ():
        if each.name in tell:
            try:
                made[each.name] = each.read([tell[each.name]] * count)
            except ValueError as error:
                raise InputError(f"--tell {each.name}={tell[each.name]}: {error}") from None
    return made


def with_size(bundle: Bundle, size: tuple[int, int] | None) -> Bundle:
    """The bundle with its stages set to make videos of (height, width).

    T2I and I2V keep their share of the video's size, to the nearest size they can make.

    Raises:
        InputError: the weights lack a stage, or the size is not one that V2V can make.
    """
    for stage in DIFFUSION:
        if stage not in bundle.stages:
            raise InputError(f"{bundle.folder} says nothing of the stage {stage}")
    own = bundle.stages["v2v"].size
    if size is None or size == own:
        return bundle
    factor = bundle.config("vae").factor
    for side in size:
        if side % factor or not 2 * factor <= side <= _LARGEST:
            raise InputError(
                f"--size {size[1]}x{size[0]} is impossible with these weights: each side is a "
                f"multiple of {factor} from {2 * factor} to {_LARGEST}"
            )
    stages = dict(bundle.stages)
    for name in DIFFUSION:
        shares = [part * new / old for part, new, old in zip(stages[name].size, size, own)]
        cells = tuple(max(1, round(share / factor)) * factor for share in shares)
        stages[name] = dataclasses.replace(stages[name], size=cells)
    return dataclasses.replace(bundle, stages=stages)


def interpolator(bundle: Bundle) -> str | None:
    """The interpolator that was chosen, None where the folder's own shall serve."""
    return bundle.stages.get("vfi", {}).get("network")


def _keyframes_alone(numbers: Numbers) -> Numbers:
    """The numbers with nothing put between the keyframes, at the pace they have in the video."""
    vfi = numbers["vfi"]
    return {**numbers, "vfi": {"between": 0, "fps": vfi["fps"] / (int(vfi["between"]) + 1)}}


def _starts(
    request: Request, bundle: Bundle, numbers: Numbers
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The user's own picture and clip, as the stages want them."""
    picture = clip = None
    if request.image:
        picture = media.read_image(request.image.path, bundle.stages["t2i"].size)
    if request.video:
        stage = bundle.stages["v2v"]
        interval = (numbers["vfi"]["between"] + 1) / numbers["vfi"]["fps"]
        clip = media.read_video(request.video.path, stage.size, stage.frames, interval)
    return picture, clip


def _shown(request: Request, bundle: Bundle, numbers: Numbers) -> dict[str, np.ndarray]:
    """What the video stages are shown beside the picture, uint8, by the raw inputs' names.

    "looks" [n, H, W, 3], and of a ControlNet "control_image" [H, W, 3] or, of a clip,
    [T, H, W, 3].
    """
    made: dict[str, np.ndarray] = {}
    size = bundle.stages["v2v"].size
    if request.looks:
        made["looks"] = np.stack([media.read_image(look.path, size) for look in request.looks])
    for name, source in request.controls.items():
        if name not in bundle.components:
            raise InputError(f"--control: these weights have no {name}")
        made[f"{name}_image"] = _picture_or_clip(source.path, bundle, numbers)
    return made


def _picture_or_clip(path: Any, bundle: Bundle, numbers: Numbers) -> np.ndarray:
    stage = bundle.stages["v2v"]
    try:
        return media.read_image(path, stage.size)
    except InputError as error:
        interval = (numbers["vfi"]["between"] + 1) / numbers["vfi"]["fps"]
        try:
            return media.read_video(path, stage.size, stage.frames, interval)
        except InputError:
            raise error from None
