"""What a user asks for, and the sidecar that says it all again.

A `Request` is made from the command line, from a sidecar (`--from out.json`), or from both, the
command line first. Nothing here imports JAX: whatever is wrong is said at once.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mv2_jax import files
from mv2_jax.errors import InputError
from mv2_jax.infer import adapt, choices, interpolators
from mv2_jax.infer.choices import Choices
from mv2_jax.infer.release import version
from mv2_jax.infer.settings import SETTINGS, Numbers, idle
from mv2_jax.lookup import one_of
from mv2_jax.numbers import DIFFUSION
from mv2_jax.remote import Remote

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle

SCHEMA = 1
LARGEST_BATCH = 1024
RANDOM = "random"
_SEEDS = 2**32
_KEYS = (
    "schema", "mv2", "prompt", "negative", "seed", "from_image", "from_video", "size", "settings",
    "choices", "tell", "looks", "controls", "negatives", "loras", "weights", "made_with", "result",
)  # fmt: skip


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_source(value: Any) -> bool:
    named = isinstance(value, Mapping) and {"file", "sha256"} <= value.keys()
    return value is None or (named and all(map(_is_text, value.values())))


def _is_file(value: Any) -> bool:
    return value is not None and _is_source(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_text, value.values()))


def _is_size(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) for side in value)
    )


def _is_settings(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(v, Mapping) for v in value.values())


def _is_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("folder"), str | None)


_SOUND = {
    "prompt": _is_text,
    "negative": _is_text,
    "seed": lambda value: isinstance(value, int),
    "from_image": _is_source,
    "from_video": _is_source,
    "size": _is_size,
    "settings": _is_settings,
    "choices": _is_settings,
    "tell": _is_texts,
    "looks": lambda value: isinstance(value, list) and all(map(_is_file, value)),
    "controls": lambda value: isinstance(value, Mapping) and all(map(_is_file, value.values())),
    "negatives": _is_texts,
    "loras": adapt.is_kept,
    "weights": _is_weights,
    "made_with": lambda value: isinstance(value, Mapping),
    "result": lambda value: isinstance(value, Mapping),
}
"""What has to hold of a sidecar's entries before they are used."""


@dataclass(frozen=True)
class Source:
    """A file of the user's that a video starts from; `sha256` is of its bytes."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: str | Path) -> Source:
        """Raises InputError where the file cannot be read."""
        path = Path(path).absolute()
        try:
            return cls(path, files.sha256(path))
        except OSError as error:
            raise InputError(f"cannot read {path}: {(error.strerror or 'error').lower()}") from None


@dataclass(frozen=True)
class Request:
    """One call of `mv2 generate`.

    `seed` is the first video's of each prompt; see `seeds`. `size` is the video's (height, width),
    None for the weights' own. `given` holds the numbers that the user set, by `Setting.dest`;
    `base` those of the sidecar. `choices` are what the user and the sidecar chose
    (`choices.Choices`). `tell` is what conditions of one's own are told, by name. `looks` are
    pictures whose look counts beside the first's, `controls` what ControlNets see instead of the
    picture, by name; `negatives` are those of single stages; `loras` are merged. `before` is the
    sidecar itself, if nothing was asked for beside it, so that the new frames must equal the old.
    """

    prompts: tuple[str, ...]
    negative: str = ""
    seed: int = 0
    image: Source | None = None
    video: Source | None = None
    size: tuple[int, int] | None = None
    weights: Path | Remote | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    base: Numbers = field(default_factory=dict)
    choices: Choices = field(default_factory=dict)
    before: Mapping[str, Any] | None = None
    tell: Mapping[str, str] = field(default_factory=dict)
    looks: tuple[Source, ...] = ()
    controls: Mapping[str, Source] = field(default_factory=dict)
    negatives: Mapping[str, str] = field(default_factory=dict)
    loras: tuple[adapt.Lora, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError('no prompt; try: mv2 generate "a red ball bouncing over a meadow"')
        if not all(prompt.strip() for prompt in self.prompts):
            raise InputError("the prompt is empty; say in words what the video is to show")
        for text in (*self.prompts, self.negative, *self.negatives.values()):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise InputError(f"{text!r} is not text in UTF-8; see your terminal") from None
        if not 0 <= self.seed < _SEEDS:
            raise InputError(f"--seed is {self.seed}; it goes from 0 to {_SEEDS - 1}")
        unused = [*idle(self.given, self.start), *choices.idle(self.choices, self.start)]
        for stage in DIFFUSION[: DIFFUSION.index(self.start)]:
            unused += [f"--{stage}-negative"] if stage in self.negatives else []
        if unused:
            raise InputError(f"{unused[0]} has no effect: this video starts at {self.start}")

    @property
    def seeds(self) -> tuple[int, ...]:
        """One a prompt: the k-th video of one and the same prompt is made from `seed` + k."""
        before: dict[str, int] = {}
        made = []
        for prompt in self.prompts:
            made.append(self.later(before.get(prompt, 0)))
            before[prompt] = before.get(prompt, 0) + 1
        return tuple(made)

    def later(self, count: int) -> int:
        """The seed of the `count`-th video after the first of a prompt."""
        return (self.seed + count) % _SEEDS

    @property
    def row(self) -> tuple[int, int]:
        """(row, batch): where in how large a batch the earlier video was made. XLA rounds by the
        shapes of a program, so that bits come again only from the same place."""
        made = (self.before or {}).get("made_with", {})
        row, batch = made.get("row", 0), made.get("batch", 1)
        sound = all(isinstance(n, int) for n in (row, batch)) and 0 <= row < batch <= LARGEST_BATCH
        return (row, batch) if sound else (0, 1)

    @property
    def start(self) -> str:
        """The first stage to run."""
        return "v2v" if self.video else "i2v" if self.image else "t2i"

    def away(self, stage: str) -> str:
        """What a stage steers away from."""
        return self.negatives.get(stage, self.negative)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every file that the video is made from, beside the weights."""
        named = filter(None, (self.image, self.video))
        return (*named, *self.looks, *self.controls.values())


def from_args(args: Any) -> Request:
    """The request of parsed command-line arguments (see `mv2_jax.cli`).

    Raises:
        InputError: whatever is wrong with them, or with the sidecar they name.
    """
    given = {s.dest: getattr(args, s.dest) for s in SETTINGS}
    given = {s.dest: s.parse(given[s.dest]) for s in SETTINGS if given[s.dest] is not None}
    chosen = choices.given(args)
    old = read_sidecar(args.from_) if args.from_ else {}
    # Where the earlier video started from is replaced as a whole by a new --image or --video.
    sources = {"image": old.get("from_image"), "video": old.get("from_video")}
    if args.image or args.video:
        sources = {"image": args.image, "video": args.video}
    said = [*args.prompt, args.negative, args.seed, args.image, args.video, args.size, args.weights]
    said.append(args.variations)
    tell, shown = _told(args.tell), _controls(args.control)
    negatives = {stage: getattr(args, f"{stage}_negative") for stage in DIFFUSION}
    negatives = {stage: text for stage, text in negatives.items() if text is not None}
    more = (given, chosen, tell, args.look, shown, negatives, args.lora)
    same = bool(old) and not any(more) and all(value is None for value in said)
    weights = args.weights or old.get("weights", {}).get("folder")
    prompts = tuple(args.prompt) or tuple(filter(None, [old.get("prompt")]))
    return Request(
        prompts=tuple(prompt for prompt in prompts for _ in range(args.variations or 1)),
        negative=_first(args.negative, old.get("negative"), ""),
        seed=_first(_seed(args.seed), old.get("seed"), 0),
        image=_source(sources["image"]),
        video=_source(sources["video"]),
        size=_first(parse_size(args.size), _pair(old.get("size"))),
        weights=files.place(weights) if weights else None,
        given=given,
        base=_base(old.get("settings", {}), chosen),
        choices=choices.merged(_kept(old, str(args.from_), sources), chosen),
        before=old if same else None,
        tell={**old.get("tell", {}), **tell},
        looks=tuple(map(_source, args.look or old.get("looks", []))),
        controls={
            name: _source(value) for name, value in (shown or old.get("controls", {})).items()
        },
        negatives=_negatives(old, args.negative, negatives, sources),
        loras=adapt.given(args.lora) or adapt.kept(old.get("loras", [])),
    )


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of "WIDTHxHEIGHT". Raises InputError where it is not that."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().lower())
    if not match:
        raise InputError(f"--size takes WIDTHxHEIGHT, such as 256x256, not {text!r}")
    return int(match[2]), int(match[1])


def interpolators_of(request: Request) -> dict[str, str]:
    """The files among the interpolators that were chosen, each with its SHA-256."""
    parts = interpolators.parts(request.choices.get("vfi", {}).get("network") or "")
    return {part: Source.of(part).sha256 for part in parts if interpolators.is_file(part)}


def sidecar(
    request: Request, index: int, numbers: Numbers, bundle: Bundle, made_with: Any, result: Any
) -> dict[str, Any]:
    """All that is needed to make video `index` of a request again, as JSON's plain values."""
    networks = interpolators_of(request)
    controls = {name: _plain(source) for name, source in request.controls.items()}
    return {
        "schema": SCHEMA,
        "mv2": version(),
        "prompt": request.prompts[index],
        "negative": request.negative,
        "seed": request.seeds[index],
        "from_image": _plain(request.image),
        "from_video": _plain(request.video),
        "size": list(request.size or bundle.stages["v2v"].size),
        "settings": numbers,
        "choices": request.choices,
        **({"tell": dict(request.tell)} if request.tell else {}),
        **({"looks": [_plain(look) for look in request.looks]} if request.looks else {}),
        **({"controls": controls} if controls else {}),
        **({"negatives": dict(request.negatives)} if request.negatives else {}),
        **({"loras": [lora.plain() for lora in request.loras]} if request.loras else {}),
        "weights": {
            "name": bundle.name,
            "folder": str(request.weights.absolute()) if request.weights else None,
            "sha256": bundle.digest,
            **({"interpolators": networks} if networks else {}),
        },
        "made_with": made_with,
        "result": result,
    }


def read_sidecar(path: str | Path) -> dict[str, Any]:
    """A sidecar's content. Raises InputError where it cannot be read or is no sidecar."""
    try:
        data = files.read_json(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {(error.strerror or 'error').lower()}") from None
    except ValueError as error:
        raise InputError(f"cannot read {path}: it is not a JSON file ({error})") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise InputError(f"{path} was not written by mv2 generate, or by another version of it")
    data.setdefault("choices", {})  # sidecars of version 0.1.0 have none
    for later in ("tell", "controls", "negatives"):
        data.setdefault(later, {})
    for later in ("looks", "loras"):
        data.setdefault(later, [])
    for key in data:
        one_of(key, _KEYS, "key", str(path))
    for key, sound in _SOUND.items():
        if key not in data or not sound(data[key]):
            raise InputError(f"{path}: {key!r} is missing or of the wrong kind")
    return data


def _base(old: Numbers, chosen: Choices) -> Numbers:
    """The numbers of an earlier video, without those that a newly chosen program brings itself."""
    brought = ("steps", "guidance")
    return {
        stage: {k: v for k, v in numbers.items() if k not in brought}
        if "few_steps" in chosen.get(stage, {})
        else numbers
        for stage, numbers in old.items()
    }


def _kept(old: Mapping[str, Any], where: str, sources: Mapping[str, Any]) -> Choices:
    """A sidecar's choices, but for those of stages that a newly given picture or clip skips."""
    skipped = ("t2i", "i2v") if sources["video"] else ("t2i",) if sources["image"] else ()
    known = choices.checked(old.get("choices", {}), where)
    return {stage: chosen for stage, chosen in known.items() if stage not in skipped}


def _source(value: Any) -> Source | None:
    """A source from a path, or from a sidecar's record of one."""
    if not value:
        return None
    return Source.of(value["file"] if isinstance(value, Mapping) else value)


def _plain(source: Source | None) -> dict[str, str] | None:
    return {"file": str(source.path), "sha256": source.sha256} if source else None


def _told(said: list[str]) -> dict[str, str]:
    """What `--tell NAME=VALUE` says, by name. Raises InputError where it is not that."""
    pairs = [text.partition("=") for text in said]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise InputError(f"--tell takes NAME=VALUE, not {name + equals + value!r}")
    return {name: value for name, _, value in pairs}


def _controls(said: list[str]) -> dict[str, str]:
    """Files by the ControlNet's name: of "2=FILE" the second's, of "FILE" the next one's."""
    made: dict[str, str] = {}
    for text in said:
        number, equals, path = text.partition("=")
        if not (equals and re.fullmatch("[1-9]", number)):
            number, path = next(n for n in "123456789" if _net(n) not in made), text
        name = _net(number)
        if name in made:
            raise InputError(f"--control: ControlNet {number} is given two files")
        made[name] = path
    return made


def _net(number: str) -> str:
    return "control" if number == "1" else f"control_{number}"


def _negatives(
    old: Mapping[str, Any], negative: str | None, new: Mapping[str, str], sources: Mapping[str, Any]
) -> dict[str, str]:
    """Those of single stages. A new one of all stages replaces an earlier video's of single ones;
    those of stages that are skipped are left out."""
    kept = {} if negative is not None else old.get("negatives", {})
    skipped = ("t2i", "i2v") if sources["video"] else ("t2i",) if sources["image"] else ()
    return {**{stage: text for stage, text in kept.items() if stage not in skipped}, **new}


def _seed(text: str | None) -> int | None:
    if text is None:
        return None
    if text.strip() == RANDOM:
        return secrets.randbelow(_SEEDS)
    if not re.fullmatch(r"\d{1,10}", text.strip()):
        raise InputError(
            f"--seed takes a whole number from 0 to {_SEEDS - 1}, or {RANDOM}, not {text!r}"
        )
    return int(text)


def _pair(value: Any) -> tuple[int, int] | None:
    return (value[0], value[1]) if value else None


def _first(*values: Any) -> Any:
    """The first value that is not None, or None."""
    return next((value for value in values if value is not None), None)
