"""The command line of `mv2 interpolate`, as plain values."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from fractions import Fraction

from mv2_jax.arguments import Parser, whole
from mv2_jax.errors import InputError
from mv2_jax.infer import interpolators
from mv2_jax.infer.interpolate_cuts import UNEXPLAINED
from mv2_jax.infer.interpolate_make import PAUSE, REPEAT


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments' values.

    Raises:
        InputError: one of them is wrong.
    """
    args = _parser().parse_args(list(arguments))
    if args.start is not None and args.end is not None and args.end <= args.start:
        raise InputError(f"--end {float(args.end):g} is not after --start {float(args.start):g}")
    if args.sound == "keep" and args.slow != 1:
        raise InputError("--sound keep: with --slow the sound is stretched or dropped")
    if args.sound == "stretch" and args.slow == 1:
        raise InputError("--sound stretch has no effect without --slow")
    return args


def _parser() -> Parser:
    parser = Parser(
        prog="mv2 interpolate",
        description="Inserts frames between the frames of a video. Sound, subtitles, colours and "
        "times are kept; nothing is inserted across a cut or between equal frames.",
    )
    add = parser.add_argument
    add(
        "videos",
        metavar="VIDEO",
        nargs="+",
        help="videos in any common container, GIF, WebP, or folders of pictures",
    )
    add("-o", "--out", metavar="FILE", help=".mp4, .mkv, .mov, .webm, .gif or .webp; without a "
        "suffix a folder of PNG files; for several videos a folder (VIDEO-smooth.mp4)")  # fmt: skip
    add("--force", action="store_true", help="overwrite existing files")
    add("--strict", action="store_true", help="refuse a video that is damaged or changes its size")
    add("--mesh", metavar="AXES", help="devices that share the work: auto, or data=8 (one)")
    _add_times(parser.add_argument_group("times"))
    _add_frames(parser.add_argument_group("new frames"))
    _add_codec(parser.add_argument_group("output file"))
    return parser


def _add_times(group: argparse._ArgumentGroup) -> None:
    pace = group.add_mutually_exclusive_group()
    pace.add_argument(
        "--times", type=whole(1, 64), metavar="N", help="multiply the frame rate by N (2; 1 to 64)"
    )
    pace.add_argument(
        "--fps",
        type=_fps,
        metavar="X",
        help="frame rate of the output: 60, 59.94 ... (twice the source's; 1 to 1000)",
    )
    add = group.add_argument
    add(
        "--pace",
        type=_fps,
        metavar="X",
        help="frame rate of a folder of pictures (required for one; 1 to 1000)",
    )
    add("--slow", type=_slow, default=Fraction(1), metavar="N", help="slow motion, N times slower "
        "(1; 1 to 64), at the source's frame rate unless --times or --fps is given")  # fmt: skip
    add("--start", type=_seconds, metavar="TIME", help="where to begin, in seconds or as h:m:s")
    add("--end", type=_seconds, metavar="TIME", help="where to stop")


def _add_frames(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--vfi", default="rife", metavar="NAME", help=interpolators.HELP)
    add("--views", type=whole(1, 8), default=1, metavar="N",
        help="average N passes over the frames flipped, mirrored or in reverse order: slower, "
        "better (1; 1 to 8)")  # fmt: skip
    add(
        "--scale",
        type=_scale,
        default=Fraction(1),
        metavar="X",
        help="resolution at which motion is estimated (1; 0.5, 0.25 or 0.125); 0.5 suits 4K and "
        "takes less memory",
    )
    add(
        "--cuts",
        type=_or_off(_share),
        default=UNEXPLAINED,
        metavar="X",
        help=f"threshold of cut detection: lower finds more cuts ({UNEXPLAINED}; 0 to 2, or off)",
    )
    add(
        "--pause",
        type=_or_off(_seconds),
        default=PAUSE,
        metavar="S",
        help=f"keep a frame that lasts longer than S seconds as it is ({PAUSE}; 0 or more, or off)",
    )
    add(
        "--jumps",
        choices=("hold", "blend"),
        default="hold",
        help="small objects that move too "
        "far to be tracked: hold them at their place, or keep the network's blend (hold)",
    )
    add("--dedupe", type=_levels, nargs="?", const=REPEAT, metavar="X", help="for animation on "
        "twos and threes: replace frames that repeat the one before, up to X grey levels "
        f"({REPEAT:g}; 0 to 64)")  # fmt: skip


def _add_codec(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--codec", metavar="NAME", help="h264, hevc, av1, vp9, prores, ffv1, or one of FFmpeg's "
        "hardware encoders: h264_nvenc, hevc_videotoolbox ... (h264; vp9 in .webm)")  # fmt: skip
    add(
        "--crf",
        type=whole(0, 63),
        metavar="N",
        help="quality; 0 is the best (16 for h264; 0 to 63)",
    )
    add("--preset", metavar="NAME", help="the encoder's preset: medium, slow ...")
    add("--pixels", metavar="FORMAT", help="FFmpeg's name of a pixel format, such as yuv420p (the "
        "one nearest to the source's)")  # fmt: skip
    add("--sound", choices=("keep", "stretch", "drop"), help="keep it, stretch it with --slow, or "
        "drop it")  # fmt: skip


def _number(text: str, low: float, high: float, what: str) -> Fraction:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = None
    if value is None or not low <= value <= high:
        raise argparse.ArgumentTypeError(f"takes {what} from {low:g} to {high:g}, not {text!r}")
    return value


def _slow(text: str) -> Fraction:
    return _number(text, 1, 64, "a number")


def _scale(text: str) -> Fraction:
    known = {str(1 / x): Fraction(1, x) for x in (1, 2, 4, 8)} | {"1": Fraction(1)}
    if text not in known:
        raise argparse.ArgumentTypeError(f"takes 1, 0.5, 0.25 or 0.125, not {text!r}")
    return known[text]


def _share(text: str) -> float:
    return float(_number(text, 0, 2, "a number"))


def _levels(text: str) -> float:
    return float(_number(text, 0, 64, "grey levels"))


def _seconds(text: str) -> Fraction:
    parts = text.split(":")
    try:
        values = [Fraction(part) for part in parts]
        if len(parts) > 3 or any(v < 0 for v in values):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"takes seconds, such as 12.5, or 1:02:12.5; not {text!r}"
        ) from None
    return sum(value * 60**k for k, value in enumerate(reversed(values)))


def _or_off(parse: Callable[[str], object]) -> Callable[[str], object]:
    return lambda text: None if text == "off" else parse(text)


def _fps(text: str) -> Fraction:
    try:
        fps = Fraction(text)
        near = Fraction(round(fps * 1001 / 1000) * 1000, 1001)
        # 59.94 and 23.976 are how people write 60000/1001 and 24000/1001.
        fps = near if fps.denominator > 1 and abs(fps - near) < Fraction(1, 200) else fps
    except (ValueError, ZeroDivisionError):
        fps = Fraction(0)
    if not 1 <= fps <= 1000:
        raise argparse.ArgumentTypeError(f"takes frames a second from 1 to 1000, not {text!r}")
    return fps
