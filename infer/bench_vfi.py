"""Frames left out of a clip, predicted by several methods side by side in one run.

Every method gets the same two frames and gives the frames between them, uint8 RGB; the clip streams
by, so its length costs no memory. "toybox" in a clip's place means renders of worlds that no
training sees, at the pace of the shipped cascade's keyframes. Sharpness is how much neighbouring
pixels differ, as a share of how much they do in the true frames: below 1 is softer. Seconds are of
the prediction alone, its first (which compiles and warms up) left out; CPU seconds tell two methods
apart even where others use the machine too.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mv2_jax import startup
from mv2_jax.errors import InputError
from mv2_jax.infer import interpolate_cuts as cuts
from mv2_jax.infer import interpolate_packets as packets
from mv2_jax.infer import interpolate_pictures as pictures
from mv2_jax.infer import interpolate_read as reading
from mv2_jax.infer import interpolators, meshes, metrics
from mv2_jax.stages import vfi_table

TOYBOX, KEYFRAME_GAPS, SIDE = "toybox", 7, 256
LEAST = 11
"""Pixels a side of the least clip: the window of SSIM."""

Predict = Callable[[np.ndarray, np.ndarray, Sequence[float]], list[np.ndarray]]
"""Two frames uint8 [H, W, 3] and times between 0 and 1 -> as many frames."""


@dataclass
class Score:
    """What one method did; lists have an entry a frame, sums are of seconds."""

    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    sharp: list[float] = field(default_factory=list)
    wall: float = 0.0
    cpu: float = 0.0
    timed: int = 0
    warm: bool = False


def command(args: argparse.Namespace) -> None:
    """What `mv2 bench vfi` does.

    Raises:
        InputError: as `reading.opened`, or a clip that is too small or has no gap to measure.
    """
    if args.clip != TOYBOX:
        _check(args.clip)  # what is wrong with the clip is said before JAX is loaded
    startup.loading()
    ready = methods(args.methods, args.vfi, args.views)
    meshes.say(hint=False)
    for times in args.times:
        scores = {name: Score() for name in ready}
        found = toybox(times, args.gaps) if args.clip == TOYBOX else None
        with _bar(args, times) as bar:
            for k, clip in enumerate(found or gaps(args.clip, times, args.gaps)):
                if k == 0:
                    height, width = clip[0].shape[:2]
                for name, predict in ready.items():
                    bar.set_postfix_str(name)
                    measure(scores[name], predict, clip)
                bar.update()
        count = len(next(iter(scores.values())).psnr)
        if not count:
            raise InputError(f"{args.clip} has no gap of {times} frames without a cut")
        print(f"\n{args.clip}, {width}x{height}, x{times}: {count} frames predicted")
        print("\n".join(table(scores)), flush=True)


def _bar(args: argparse.Namespace, times: int) -> tqdm:
    """Progress, gap by gap; gaps with a cut are among those that are to come, but left out."""
    if args.clip == TOYBOX:
        count = args.gaps or KEYFRAME_GAPS**2
    else:
        count = (packets.survey(args.clip).count - 1) // times
        count = min(count, args.gaps) if args.gaps else count
        if not count:
            raise InputError(f"{args.clip} has no gap of {times} frames")
    return tqdm(
        desc=f"{args.clip} x{times}",
        total=count,
        file=sys.stderr,
        bar_format="{desc} {percentage:3.0f}%|{bar}| gap {n_fmt}/{total_fmt} {elapsed}, "
        "{remaining} left{postfix}",
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,
    )


def _check(path: str) -> None:
    with reading.opened(path) as source:
        height, width = source.stream.height, source.stream.width
    if min(height, width) < LEAST:
        raise InputError(f"{path} is {width}x{height}; {LEAST} pixels a side is the least")


def measure(score: Score, predict: Predict, clip: Sequence[np.ndarray]) -> None:
    """Lets a method predict what lies between the first and last frame of `clip`."""
    times = [k / (len(clip) - 1) for k in range(1, len(clip) - 1)]
    if not score.warm:
        predict(clip[0], clip[-1], times)
        score.warm = True
    wall, cpu = time.perf_counter(), time.process_time()
    made = predict(clip[0], clip[-1], times)
    score.wall += time.perf_counter() - wall
    score.cpu += time.process_time() - cpu
    score.timed += len(times)
    for new, truth in zip(made, clip[1:-1]):
        score.psnr.append(metrics.psnr(new, truth))
        score.ssim.append(metrics.ssim(new, truth))
        score.sharp.append(metrics.sharpness(new, truth))


def table(scores: dict[str, Score]) -> list[str]:
    """Lines for a person."""
    lines = [f"{'':24}{'PSNR':>8}{'SSIM':>8}{'sharp':>8}{'s/frame':>10}{'CPU s':>8}"]
    for name, score in scores.items():
        # Of frames predicted exactly the ratio is infinite; 99 keeps them in the mean.
        psnr = np.mean(np.minimum(score.psnr, 99.0))
        each = [total / score.timed for total in (score.wall, score.cpu)]
        means = f"{psnr:8.2f}{np.mean(score.ssim):8.4f}{np.mean(score.sharp):8.3f}"
        lines.append(f"{name:24}{means}{each[0]:10.3f}{each[1]:8.3f}")
    ours = scores.get("mv2 rife, 1 view")
    theirs = next((s for n, s in scores.items() if n.startswith("torch")), None)
    if ours and theirs:
        wall, cpu = (getattr(theirs, k) / getattr(ours, k) for k in ("wall", "cpu"))
        lines.append(f"mv2 is {wall:.2f} times as fast as torch ({cpu:.2f} times by CPU seconds)")
    return lines


def gaps(path: str, times: int, most: int | None) -> Iterator[list[np.ndarray]]:
    """Runs of `times` + 1 frames uint8 [H, W, 3], each beginning where the last ended.

    Those with a cut in them are left out. With `most`, about that many, evenly spread.
    """
    with reading.opened(path) as source:
        every = max(1, (source.survey.count - 1) // times // most) if most else 1
        frames = source.pictures()
        last = next(frames)
        for index in range(0, 10**9):
            run = [last, *itertools.islice(frames, times)]
            if len(run) <= times or (most and index >= every * most):
                return
            last = run[-1]
            if index % every == 0 and not _has_cut(run):
                yield [_pixels(picture) for picture in run]


def toybox(times: int, most: int | None) -> Iterator[list[np.ndarray]]:
    """`most` gaps (49 by default) of `times` + 1 frames uint8 [256, 256, 3] of withheld worlds.

    Seven a world, as between the eight keyframes of a shipped video. The worlds are the same in
    every run, and none is of the training split.
    """

    from mv2_jax.diffusion import keys
    from mv2_jax.infer import evaluate, media
    from mv2_jax.toybox import renderer
    from mv2_jax.toybox.world import sample_world

    most = most or 49
    words, _, _ = evaluate.withheld(max(2, -(-most // KEYFRAME_GAPS)), 0)
    moments = np.linspace(0, 1, KEYFRAME_GAPS * times + 1, dtype=np.float32)
    for index in range(most):
        row, start = index // KEYFRAME_GAPS, index % KEYFRAME_GAPS * times
        if start == 0:
            world = sample_world(keys.seed(row), *(int(word) for word in words[row]))
            frames = media.to_uint8(np.asarray(renderer.render(world, moments, (SIDE, SIDE))))
        yield list(frames[start : start + times + 1])


def _has_cut(run: list[reading.Picture]) -> bool:
    small = [cuts.thumbnail(picture.planes[0], picture.layout.bits) for picture in run]
    return any(cuts.is_cut(a, b) for a, b in itertools.pairwise(small))


def _pixels(picture: reading.Picture) -> np.ndarray:
    return _bytes(pictures.rgb(picture.planes[:3], picture.layout, np) * 255)


def _bytes(levels: np.ndarray) -> np.ndarray:
    return np.round(np.clip(levels, 0, 255)).astype(np.uint8)


def methods(names: Sequence[str], vfi: Sequence[str], views: Sequence[int]) -> dict[str, Predict]:
    """The methods by the names to print. What is not installed is left out, with a note."""
    made: dict[str, Predict] = {}
    if "nearest" in names:
        made["nearest"] = nearest
    if "blend" in names:
        made["blend"] = blend
    if "dis" in names:
        try:
            import cv2

            made[f"DIS flow, OpenCV {cv2.__version__}"] = dis(cv2)
        except ImportError:
            print("no DIS flow: OpenCV is not installed (pip install 'mv2-jax[bench]')")
    for name in vfi if "mv2" in names else ():
        params, cfg = interpolators.load(name)
        for count in views:
            label = f"mv2 {_short(name)}, {count} view{'s' if count > 1 else ''}"
            made[label] = network(params, cfg, count)
    if "torch" in names and "rife" in vfi:
        from mv2_jax.convert import rife_torch

        try:
            loaded = rife_torch.load(*interpolators.load("rife"))
            made[f"torch {rife_torch.version()}, rife"] = loaded
        except ImportError:
            print("no torch to compare with: it is not installed")
    return made


def _short(name: str) -> str:
    """What to print for an interpolator: a file's name without its folder and suffix."""
    return "+".join(Path(part).stem for part in name.split("+"))


def nearest(first: np.ndarray, second: np.ndarray, times: Sequence[float]) -> list[np.ndarray]:
    """The nearer frame; in the middle, the first."""
    return [first if time <= 0.5 else second for time in times]


def blend(first: np.ndarray, second: np.ndarray, times: Sequence[float]) -> list[np.ndarray]:
    """The two frames' weighted mean."""
    return [_bytes(first * (1 - np.float32(t)) + second * np.float32(t)) for t in times]


def dis(cv2: Any) -> Predict:
    """OpenCV's dense inverse search flow (arXiv 1603.03590), medium preset, both ways.

    The flows from a time between are combined of the two as in Super SloMo (arXiv 1712.00080).
    """
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def predict(first: np.ndarray, second: np.ndarray, times: Sequence[float]) -> list[np.ndarray]:
        grey = [cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (first, second)]
        there, back = search.calc(*grey, None), search.calc(*grey[::-1], None)
        rows, columns = np.mgrid[: first.shape[0], : first.shape[1]].astype(np.float32)
        made = []
        for t in times:
            flows = (t * t * back - t * (1 - t) * there, (1 - t) ** 2 * there - t * (1 - t) * back)
            near, far = (
                cv2.remap(
                    image,
                    columns + flow[..., 0],
                    rows + flow[..., 1],
                    cv2.INTER_LINEAR,
                    borderMode=cv2.BORDER_REPLICATE,
                ).astype(np.float32)
                for image, flow in zip((first, second), flows)
            )
            made.append(_bytes(near * (1 - t) + far * t))
        return made

    return predict


def network(params: Any, cfg: vfi_table.Config, views: int) -> Predict:
    """An interpolator of this package, fp32; RIFE one frame at a time, as in PyTorch."""
    import jax

    from mv2_jax import params as trees
    from mv2_jax.infer import cache
    from mv2_jax.stages import interpolators, vfi_table

    cache.enable()
    tree = jax.device_put(trees.cast(params, np.float32))

    def predict(first: np.ndarray, second: np.ndarray, times: Sequence[float]) -> list[np.ndarray]:
        pair = [x[None].astype(np.float32) / 127.5 - 1 for x in (first, second)]
        each = [list(times)] if vfi_table.shares(cfg) else [[t] for t in times]
        made = []
        for some in each:
            new = interpolators.between(tree, cfg, *pair, np.float32([some]), views=views)
            made += [_bytes((frame + 1) * 127.5) for frame in np.asarray(new)[0]]
        return made

    return predict
