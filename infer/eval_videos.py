"""`mv2 eval videos DIR`: measures of any videos, without people and without prompts."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mv2_jax import files
from mv2_jax.arguments import Parser, whole
from mv2_jax.infer import media, outputs
from mv2_jax.infer import video_measures as measures
from mv2_jax.infer.arena import build, pairs
from mv2_jax.infer.arena.pairs import Clip

WHAT = {
    "difference": "neighbouring frames' difference, grey levels",
    "flicker": "brightness against the neighbours', grey levels",
    "dynamic": "speed of the fastest 5%, pixels a frame",
    "jerk": "change of motion, pixels a frame",
    "sharpness": "variance of the Laplacian",
    "steps": "made frames' brightness off the given ones' line, grey levels",
    "ssim": "structural similarity to the reference picture",
    "lpips": "LPIPS to the reference picture",
    "clip": "CLIP score of the prompt",
}
_SIDE = 256  # pixels of the shorter side at which all is measured
_FEW = 8  # frames of a video that LPIPS looks at


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 eval videos`; returns the exit code. Raises InputError for bad flags and files."""
    args = _parser().parse_args(list(arguments))
    nets = Nets(_lpips(args.lpips), _clip(args.clip))
    folder = Path(args.folder)
    if args.out:
        outputs.check(Path(args.out))
    rows = _rows(folder, args.times, nets)
    print(_table(folder.name, rows))
    if args.against:
        other = _rows(Path(args.against), args.times, nets)
        print(f"\n{_table(Path(args.against).name, other)}\n")
        for line in _compared(rows, other, nets):
            print(line)
    if args.out:
        _write(Path(args.out), rows)
    return 0


class Nets(NamedTuple):
    """Networks that measure: LPIPS's parameters and a `clip_score.Clip`; None leaves one out."""

    lpips: Any = None
    clip: Any = None


def measure(clip: Clip, times: int | None, nets: Nets) -> dict[str, Any]:
    """{measure: value} of a video, with its name and "features" [C] where there is LPIPS.

    Args:
        times: every so manieth frame is given; None: as its sidecar says.

    Raises:
        InputError: the video, or its reference picture, cannot be read.
    """
    frames, _ = build.read_frames(clip.path)
    frames = _small(frames)
    dynamic, jerk = measures.motion(frames)
    times = times or _times(clip.path)
    found: dict[str, Any] = {
        "video": clip.path.name,
        "prompt": clip.prompt or "",
        "frames": len(frames),
        "difference": measures.frame_difference(frames),
        "flicker": measures.flicker(frames),
        "dynamic": dynamic,
        "jerk": jerk,
        "sharpness": measures.sharpness(frames),
        "steps": measures.steps(frames, times) if times else math.nan,
        "ssim": math.nan,
    }
    picture = _reference(clip.path, frames)
    if min(frames.shape[1:3]) >= 11:
        found["ssim"] = measures.consistency(frames, picture)
    some = frames[np.linspace(0, len(frames) - 1, min(_FEW, len(frames))).astype(int)]
    some = media.to_float(some)
    if nets.lpips is not None and min(frames.shape[1:3]) >= 32:
        from mv2_jax.infer import perceptual

        one = media.to_float(picture[None])
        told = perceptual.distance(nets.lpips, some, np.repeat(one, len(some), axis=0))
        found["lpips"] = float(np.mean(told))
        found["features"] = np.asarray(perceptual.pooled(nets.lpips, some)).mean(axis=0)
    if nets.clip is not None and clip.prompt:
        found["clip"] = float(np.mean(nets.clip.score(clip.prompt, some)))
    return found


def _small(frames: np.ndarray) -> np.ndarray:
    """Frames whose shorter side is `_SIDE` at the most, so that pixels mean the same for all."""
    height, width = frames.shape[1:3]
    scale = _SIDE / min(height, width)
    if scale >= 1:
        return frames
    return media.fit_all(frames, (round(height * scale), round(width * scale)))


def _reference(path: Path, frames: np.ndarray) -> np.ndarray:
    """The picture that a video was made of: `mv2 generate --stages`'s, else its first frame."""
    picture = path.with_name(f"{path.stem}.reference.png")
    if picture.is_file():
        return media.read_image(picture, frames.shape[1:3])
    return frames[0]


def _times(path: Path) -> int | None:
    """How many frames a gap became, as a sidecar of `mv2 generate` says; None where it does not."""
    try:
        said = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        times = said["settings"]["vfi"]["between"] + 1
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return times if times > 1 else None


def _clip(asked: str | None) -> Any:
    from mv2_jax.infer import clip_score

    return clip_score.load(asked) if asked else None


def _lpips(net: str) -> Any:
    from mv2_jax.infer import perceptual

    path = perceptual.shipped(net)
    if path is None:
        print('mv2: without LPIPS, whose weights are in "mv2-jax[eval]"', file=sys.stderr)
        return None
    return perceptual.load(path, net)


def _rows(folder: Path, times: int | None, nets: Nets) -> list[dict[str, Any]]:
    return [measure(clip, times, nets) for clip in pairs.read(folder)]


def _means(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """{measure: (mean, standard error)} over the videos that have it."""
    found = {}
    for name in WHAT:
        values = np.array([row[name] for row in rows if math.isfinite(row.get(name, math.nan))])
        if len(values):
            error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else math.nan
            found[name] = (float(values.mean()), float(error))
    return found


def _table(name: str, rows: list[dict[str, Any]]) -> str:
    lines = [f"{name}: {len(rows)} videos"]
    for measure_, (mean, error) in _means(rows).items():
        spread = f" +- {error:.2g}" if math.isfinite(error) else ""
        lines.append(f"  {measure_:<11}{mean:>10.4g}{spread:<12} {WHAT[measure_]}")
    return "\n".join(lines)


def _compared(rows: list[dict[str, Any]], other: list[dict[str, Any]], nets: Nets) -> list[str]:
    """What two folders differ by, and the Frechet distance of LPIPS's features."""
    ours, theirs = _means(rows), _means(other)
    lines = ["the first's mean less the second's:"]
    for name in (name for name in ours if name in theirs):
        lines.append(f"  {name:<11}{ours[name][0] - theirs[name][0]:>+10.4g}")
    a, b = ([row["features"] for row in side if "features" in row] for side in (rows, other))
    if len(a) > 1 and len(b) > 1:
        from mv2_jax.infer import perceptual

        title = perceptual.of(nets.lpips).title
        value = measures.frechet(np.stack(a), np.stack(b))
        lines.append(f"  Frechet distance of {title}'s features (no FID): {value:.4g}, of "
                     f"{len(a)} and {len(b)} videos")  # fmt: skip
    return lines


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    names = [name for name in rows[0] if name != "features"]
    with files.whole(path) as scratch, open(scratch, "w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}")


def _parser() -> Parser:
    parser = Parser(
        prog="mv2 eval videos",
        description="Measures every video of a folder: flicker, motion, sharpness, "
        "brightness steps of made frames, and consistency with its reference picture "
        "(NAME.reference.png of mv2 generate --stages, else the first frame).",
    )
    add = parser.add_argument
    add("folder", metavar="DIR", help="a folder of videos")
    add("--against", metavar="DIR", help="another folder, to compare with")
    add("--times", type=whole(2, 64), metavar="N", help="every N-th frame is given, the others are "
        "made (as sidecars say; 2 to 64)")  # fmt: skip
    add("--lpips", choices=("alex", "vgg"), default="alex", help="the network of LPIPS: AlexNet "
        "or VGG16 (alex)")  # fmt: skip
    add("--clip", metavar="PATH", help="a CLIP's file or folder (transformers' or OpenCLIP's), or "
        "a cascade folder that has one: adds the CLIP score of the prompts (none)")  # fmt: skip
    add("-o", "--out", metavar="FILE", help="a CSV file to write, a row a video")
    return parser
