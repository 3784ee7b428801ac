"""`mv2 data SOURCE`: what a source holds, and what training would see of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from mv2_jax import startup
from mv2_jax.arguments import Parser, whole
from mv2_jax.infer import media
from mv2_jax.text import CLIPTokenizer
from mv2_jax.train import needs
from mv2_jax.train.media.settings import DEFAULTS, from_texts

if TYPE_CHECKING:
    from mv2_jax.train.media.source import Media
    from mv2_jax.train.media.turns import Turn

SHOWN = 8  # clips on a sheet
SIDE = 160  # of a frame on it
NAMED = 20  # broken files that are named


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = _parser().parse_args(list(arguments))
    needs.check("mv2 data", needs.DATA, "data")
    settings = from_texts(args.set or ())
    startup.loading()
    from mv2_jax.train.media.source import Media

    source = Media({**settings, "root": args.source, "clip": "middle"}, 0)
    size = tuple(args.size) if len(args.size) == 2 else (args.size[0], args.size[0])
    found = describe(source, size, args.frames)
    print(json.dumps(found, indent=1) if args.json else told(found, args.all))
    if args.out:
        media.write_image(args.out, sheet(source, SHOWN))
        if not args.json:
            print(f"a sheet of the first {min(SHOWN, source.length)}: {args.out}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="mv2 data",
        description="Inspects a source of clips and pictures: counts, durations, captions, "
        "training buckets and broken files.",
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a folder, tars, ArrayRecord files, a TFDS dataset ...")
    add("-o", "--out", metavar="PNG", help="write a contact sheet with captions")
    add(
        "--size",
        type=int,
        nargs="+",
        default=[512],
        metavar="PIXELS",
        help="height and width of training samples (512)",
    )
    add("--frames", type=whole(1, 1024), default=16, metavar="N",
        help="frames of a training clip (16; 1 to 1024)")  # fmt: skip
    add("--set", nargs="+", action="extend", metavar="NAME=VALUE",
        help=f"a setting of data, as in a recipe: {', '.join(DEFAULTS)}")  # fmt: skip
    add("--all", action="store_true", help=f"name all broken files, not only {NAMED}")
    add("--json", action="store_true", help="print JSON")
    return parser


def describe(source: Media, size: tuple[int, int], frames: int) -> dict[str, Any]:
    """Counts, durations, captions, buckets and what is broken, ready for JSON."""
    from mv2_jax.train.media.turns import Turn

    infos = [source.parts[which].index.infos[number] for which, number in source.places]
    clips = [info for info in infos if not info.still]
    seconds = [info.seconds + 1 / info.fps for info in clips]
    captions = [
        list(source.parts[which].records.captions(number)) for which, number in source.places
    ]
    words = CLIPTokenizer()
    tokens = [len(words.tokenize(text)) for texts in captions for text in texts]
    buckets = {"clips": Turn((frames,), size, 1), "pictures": Turn((1,), size, 1)}
    return {
        "kind": [type(part.records).__name__ for part in source.parts],
        "clips": len(clips),
        "pictures": len(infos) - len(clips),
        "seconds": _spread(seconds) | {"total": float(sum(seconds))},
        "fps": dict(Counter(f"{info.fps:.4g}" for info in clips).most_common(8)),
        "sizes": dict(Counter(f"{info.width}x{info.height}" for info in infos).most_common(8)),
        "captions": sum(map(len, captions)),
        "without": sum(not texts for texts in captions),
        "tokens": _spread(tokens),
        "longer than 75 tokens": sum(count > 75 for count in tokens),
        "buckets": {name: _buckets(source, turn) for name, turn in buckets.items()},
        "too short": sum(
            part.longest(info, (frames,)) is None
            for part in source.parts
            for number in part.index.usable
            if not (info := part.index.infos[number]).still
        ),
        "broken": source.broken,
    }


def told(found: dict[str, Any], whole: bool = False) -> str:
    """The description for a person to read."""
    seconds, tokens = found["seconds"], found["tokens"]
    lines = [f"{found['clips']} clips, {found['pictures']} pictures ({', '.join(found['kind'])})"]
    if found["clips"]:
        lines += [
            f"clips last {seconds['least']:.3g} to {seconds['most']:.3g} s, {seconds['median']:.3g}"
            f" in the middle, {seconds['total'] / 60:.3g} minutes in all",
            "frames a second: " + _counted(found["fps"]),
        ]
    lines.append("sizes: " + _counted(found["sizes"]))
    if found["captions"]:
        lines.append(
            f"{found['captions']} captions of {tokens['least']} to {tokens['most']} tokens, "
            f"{tokens['median']} in the middle; {found['longer than 75 tokens']} are longer than "
            "one row of 75"
        )
    if found["without"]:
        lines.append(f"{found['without']} without a caption")
    for kind, held in found["buckets"].items():
        if held:
            lines.append(f"training would see these {kind}: {_counted(held)}")
    if found["too short"]:
        lines.append(f"{found['too short']} clips are too short")
    broken = found["broken"]
    if broken:
        lines.append(f"{len(broken)} files are left out:")
        named = list(broken.items()) if whole else list(broken.items())[:NAMED]
        lines += [f"  {name}: {why}" for name, why in named]
        if len(named) < len(broken):
            lines.append(f"  and {len(broken) - len(named)} more (--all)")
    return "\n".join(lines)


def sheet(source: Media, count: int) -> np.ndarray:
    """The first samples, uint8 [H, W, 3]: four frames of each in a row, its caption above."""
    count, line, width = min(count, source.length), 14, 4 * SIDE
    page = Image.new("RGB", (width, count * (SIDE + line + 4)), "white")
    for number in range(count):
        which, own = source.places[number]
        part = source.parts[which]
        info = part.index.infos[own]
        shown = 1 if info.still else 4
        sides = (SIDE, SIDE)
        clips, _ = source.read([number], shown, sides)
        top = number * (SIDE + line + 4)
        captions = part.records.captions(own)
        text = f"{part.records.name(own)}: {captions[0] if captions else '(no caption)'}"
        ImageDraw.Draw(page).text((2, top + 1), text[:110], fill="black")
        for place, picture in enumerate(media.to_uint8(clips[0])):
            page.paste(Image.fromarray(picture), (place * SIDE, top + line))
    return np.asarray(page)


def _spread(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"least": 0, "median": 0, "most": 0}
    return {"least": min(values), "median": float(np.median(values)), "most": max(values)}


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _buckets(source: Media, turn: Turn) -> dict[str, int]:
    """{"16 frames 512x512": how many}, the most first."""
    found = {
        f"{frames} frames {size[1]}x{size[0]}" if frames > 1 else f"{size[1]}x{size[0]}": sum(
            map(len, held.values())
        )
        for (frames, size), held in source.buckets(turn, 8).items()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))
