"""`mv2 explain "prompt"`: how the cascade came to its video, on one HTML page.

What each stage received and made, where the words looked, what the noise prior does, and the video
with each mechanism switched off. Everything is made from one seed, so that what differs is due to
what was switched.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mv2_jax import bundle as bundles
from mv2_jax import files, startup
from mv2_jax import text as tokenizers
from mv2_jax.arguments import Parser
from mv2_jax.errors import InputError
from mv2_jax.infer import explain_page as html
from mv2_jax.infer import media, meshes, outputs, settings, words
from mv2_jax.infer.request import Request
from mv2_jax.text import timing

if TYPE_CHECKING:
    from mv2_jax.cascade import Cascade
    from mv2_jax.infer.generate import Made
    from mv2_jax.infer.mechanisms import Bench, Idle
    from mv2_jax.infer.settings import Numbers
    from mv2_jax.programs import Progress

_SIDE = 192  # of most pictures on the page, in pixels


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 explain`; returns the exit code.

    Raises:
        InputError: a bad flag or prompt, weights that are missing or damaged, an output that cannot
            be written.
    """
    parser = Parser(
        prog="mv2 explain",
        description="Makes a video and explains it on one HTML page, which needs no other file: "
        "what each stage did, where words looked, what each mechanism brought.",
    )
    add = parser.add_argument
    add("prompt", help="what the video should show")
    add(
        "-o",
        "--out",
        default="explain.html",
        metavar="FILE",
        help="the page to write (explain.html)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the noise (0; 0 to 4294967295)")
    add("--negative", default="", metavar="TEXT", help="what the video should not show")
    add("--weights", metavar="DIR", help="a cascade folder (the shipped one)")
    add("--mesh", metavar="AXES", help=meshes.HELP)
    args = parser.parse_args(list(arguments))
    from mv2_jax.infer import generate, notes
    from mv2_jax.infer.progress import Bars

    out = Path(args.out)
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file for the page")
    asked = Request((args.prompt,), args.negative, args.seed)
    if not (timing.is_one(args.prompt) and timing.is_one(args.negative)):
        raise InputError("mv2 explain takes a prompt that stays the same over steps and frames")
    first_process = meshes.begin(args.mesh)
    with meshes.agreed(args.mesh):
        if first_process:
            outputs.check(out)
        bundle = bundles.read(args.weights)
        words.check(asked.prompts, tokenizers.from_json(bundle.tokenizer))
        numbers = settings.resolve({}, {}, bundle)
    for line in notes.warnings(asked, bundle) if first_process else ():
        print(f"mv2: warning: {line}", file=sys.stderr)
    startup.loading()
    began = time.monotonic()
    cascade, made_with = generate.load(bundle, args.mesh)
    with Bars(silent=not first_process) as bars:
        document = explain(cascade, args.prompt, numbers, args.seed, args.negative, bars, made_with)
    if first_process:
        with files.whole(out) as scratch:
            scratch.write_text(document, encoding="utf-8")
        size = len(document.encode()) / 1e6
        print(f"{out}: {size:.1f} MB, after {time.monotonic() - began:.0f} s")
    meshes.end(args.mesh)
    return 0


class _Clock:
    """Passes progress on, and notes how long each stage compiled."""

    def __init__(self, progress: Progress) -> None:
        self.compiled: dict[str, float] = {}
        self._progress, self._began = progress, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._progress(stage, done, total)
        name = stage.removeprefix("compiling ")
        if name != stage:
            now = time.monotonic()
            if done:
                self.compiled[name] = self.compiled.get(name, 0.0) + now - self._began
            self._began = now


def explain(
    cascade: Cascade,
    prompt: str,
    numbers: Numbers,
    seed: int = 0,
    negative: str = "",
    progress: Progress | None = None,
    made_with: dict[str, str] | None = None,
) -> str:
    """The page as text.

    Args:
        cascade: a `mv2_jax.cascade.Cascade`.
        numbers: of every stage, see `settings.resolve`.
        made_with: facts about the machine for the page's foot.
    """
    from mv2_jax.infer import mechanisms
    from mv2_jax.programs import silent

    clock = _Clock(progress or silent)
    idle = {stage: cascade.idle(stage) for stage in numbers}
    bench = mechanisms.Bench(cascade, [prompt], [seed], numbers, negative, clock, idle=idle)
    full = bench.make(mechanisms.FULL)
    seconds, compiled = dict(bench.seconds), dict(clock.compiled)
    facts = ", ".join(f"{name} {value}" for name, value in (made_with or {}).items())
    clock("maps", 0, 2)
    words_ = _words(cascade, prompt, seed, numbers, negative, full)
    clock("maps", 1, 2)
    prior = _prior(cascade, prompt, seed, numbers, negative, full, idle)
    clock("maps", 2, 2)
    sections = [
        ("What each stage received and made", _stages(numbers, full, seconds, compiled)),
        ("Where the words looked", words_),
        ("The noise prior", prior),
        ("What each mechanism brings", _without(bench, full, numbers, idle)),
        ("Numbers", _numbers(cascade, numbers) + html.text(f"seed {seed}; {facts}")),
    ]
    return html.page(prompt, sections)


def _stages(
    numbers: Numbers, full: Made, seconds: Mapping[str, float], compiled: Mapping[str, float]
) -> str:
    picture, keyframes, refined, frames = (
        x[0] for x in (full.picture, full.keyframes, full.refined, full.frames)
    )

    def size(x: np.ndarray) -> str:
        many = f"{len(x)} frames of " if x.ndim == 4 else ""
        return f"{many}{x.shape[-2]}x{x.shape[-3]}"

    received = {
        "t2i": ("the prompt", f"a picture, {size(picture)}"),
        "i2v": ("the prompt, the picture", size(keyframes)),
        "v2v": ("the prompt, the picture, the keyframes", size(refined)),
        "vfi": ("the frames", size(frames)),
    }
    rows = []
    for stage, (got, made) in received.items():
        own = numbers[stage]
        steps: float | str = own.get("steps", "-")
        if stage == "v2v":
            steps = f"{int(own['steps'] * own['strength'] + 1e-3)} of {int(own['steps'])}"
        wait = compiled.get(stage, 0.0)
        ran = max(0.0, seconds[stage] - wait)
        rows.append((stage.upper(), got, made, steps, round(ran, 2), round(wait, 2)))
    head = ("stage", "received", "made", "steps", "seconds", "of compiling before")
    pace = numbers["vfi"]["fps"]
    slow = pace / (int(numbers["vfi"]["between"]) + 1)
    shown = [
        html.figure(picture, "T2I's picture", _SIDE),
        html.animation(keyframes, slow, "I2V's keyframes", _SIDE),
        html.animation(refined, slow, "V2V: the same, larger and redrawn", _SIDE),
        html.animation(frames, pace, "VFI: with frames in between", _SIDE),
    ]
    return html.table(head, rows) + html.row(shown)


def _words(
    four: Cascade, prompt: str, seed: int, numbers: Numbers, negative: str, full: Made
) -> str:
    from mv2_jax.infer import explain_maps as maps

    spans = maps.words(four.tokenizer, prompt)
    looks = maps.of_picture(four, prompt, seed, numbers["t2i"], negative)
    believed = [
        html.figure(media.to_uint8(clip[0]), f"after {step} steps", _SIDE // 2 + 32)
        for step, clip in zip(looks.steps, looks.believed)
    ]
    picture, frames = full.picture[0], full.keyframes[0]
    still = _heats(spans, looks.text, picture[None], _SIDE // 2 + 32)
    moving = maps.of_clip(
        four, prompt, seed, media.to_float(full.picture), numbers["i2v"], negative
    )
    clips = _heats(spans, moving.text, frames, 3 * _SIDE)
    return "".join(
        (
            html.text("What T2I's network believes the picture to be, on its way from noise:"),
            html.row(believed),
            html.text(
                "How strongly places looked at each word, over layers, heads and steps: bright is "
                "where a word was looked at most (each word by its own scale; the share is of all "
                "looking, the rest goes to the other words and the sentence's ends)."
            ),
            html.row(still),
            html.text("The same in I2V, over the keyframes:"),
            html.row(clips),
        )
    )


def _heats(
    spans: Sequence[tuple[str, slice]], text: np.ndarray, frames: np.ndarray, width: int
) -> list[str]:
    """One figure a word: frames [T, H, W, 3] lit by the word's maps [T, h, w]."""
    made = []
    for word, span in spans:
        weights = text[..., span].sum(axis=-1)
        low, high = weights.min(), weights.max()
        scaled = (weights - low) / (high - low) if high > low else weights * 0
        lit = html.strip(np.stack([html.heat(*pair) for pair in zip(frames, scaled)]))
        made.append(html.figure(lit, f"{word} ({weights.mean():.1%})", width))
    return made


def _prior(
    four: Cascade, prompt: str, seed: int, numbers: Numbers, negative: str, full: Made, idle: Idle
) -> str:
    from mv2_jax.infer import explain_maps as maps

    if "noise_prior" in idle["i2v"]:
        return html.text(f"It has no effect here: {idle['i2v']['noise_prior']}.")
    picture = media.to_float(full.picture)
    alpha, sigma = maps.first_step(four)
    rows, shown = [], []
    for strength in (0.0, 1.0):
        given = {**numbers["i2v"], "noise_prior": strength}
        looks = maps.of_clip(four, prompt, seed, picture, given, negative, most=1)
        like = np.corrcoef(looks.start.mean(axis=0).ravel(), looks.reference.ravel())[0, 1]
        rows.append((strength, round(float(like), 4)))
        first = html.strip(media.to_uint8(looks.believed[0]))
        shown.append(
            html.figure(first, f"believed at the first step, prior {strength:g}", 3 * _SIDE)
        )
    return "".join(
        (
            html.text(
                f"At its first step I2V's schedule leaves {alpha:.4f} of signal beside {sigma:.4f} "
                "of noise. The prior puts the picture's latent there as that signal; without it "
                "the chain starts from noise alone. What the network makes of either, in one step:"
            ),
            html.row(shown),
            html.table(("noise prior", "correlation of the start's mean with the picture"), rows),
        )
    )


def _without(bench: Bench, full: Made, numbers: Numbers, idle: Idle) -> str:
    from mv2_jax.infer import mechanisms

    pace = numbers["vfi"]["fps"]
    shown = [html.animation(full.frames[0], pace, mechanisms.FULL.name, _SIDE)]
    (_, *off), same = mechanisms.telling((mechanisms.FULL, *mechanisms.OFF), numbers, idle)
    for variant in off:
        frames = bench.make(variant).frames[0]
        apart = np.abs(frames.astype(np.float32) - full.frames[0]).mean()
        caption = f"{variant.name} (differs by {apart:.1f} of 255 on average)"
        shown.append(html.animation(frames, pace, caption, _SIDE))
    return html.row(shown) + "".join(html.text(f"Left out: {line}.") for line in same)


def _numbers(four: Cascade, numbers: Numbers) -> str:
    import jax

    sizes = [
        (name, sum(leaf.size for leaf in jax.tree.leaves(tree)))
        for name, tree in four.params.items()
    ]
    sizes.append(("all together", sum(size for _, size in sizes)))
    given = [
        (stage.upper(), ", ".join(_told(*number) for number in values.items() if number[1] != ""))
        for stage, values in numbers.items()
    ]
    return html.table(("component", "parameters"), sizes) + html.table(("stage", "numbers"), given)


def _told(name: str, value: float | str) -> str:
    return f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}"
