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
        description="Makes a video smoother by frames between its frames. Its sound, subtitles, "
        "colours and times are kept; nothing is made across a cut or between equal frames.",
    )
    add = parser.add_argument
    add(
        "videos",
        metavar="VIDEO",
        nargs="+",
        help="videos in any usual container, GIF and WebP too, or folders of pictures",
    )
    add("-o", "--out", metavar="FILE", help="an .mp4, .mkv, .mov, .webm, .gif or .webp, or without "
        "a suffix a folder of PNG; for several videos a folder (VIDEO-smooth.mp4)")  # fmt: skip
    add("--force", action="store_true", help="replace what is there already")
    add("--strict", action="store_true", help="refuse a damaged or changing video")
    add("--mesh", metavar="AXES", help="devices to share the gaps among: auto, or data=8 (one)")
    _add_times(parser.add_argument_group("times"))
    _add_frames(parser.add_argument_group("new frames"))
    _add_codec(parser.add_argument_group("the file"))
    return parser


def _add_times(group: argparse._ArgumentGroup) -> None:
    pace = group.add_mutually_exclusive_group()
    pace.add_argument(
        "--times", type=whole(1, 64), metavar="N", help="frames for each (2; 1 to 64)"
    )
    pace.add_argument(
        "--fps",
        type=_fps,
        metavar="X",
        help="frames a second: 60, 59.94 ... (twice the source's; 1 to 1000)",
    )
    add = group.add_argument
    add(
        "--pace",
        type=_fps,
        metavar="X",
        help="frames a second of a folder of pictures (needed there; 1 to 1000)",
    )
    add("--slow", type=_slow, default=Fraction(1), metavar="N", help="N times slower (1; 1 to 64), "
        "at the source's pace unless --times or --fps says another")  # fmt: skip
    add("--start", type=_seconds, metavar="TIME", help="seconds or h:m:s into the video")
    add("--end", type=_seconds, metavar="TIME", help="where to stop, likewise")


def _add_frames(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--vfi", default="rife", metavar="NAME", help=interpolators.HELP)
    add("--views", type=whole(1, 8), default=1, metavar="N",
        help="N times slower, better (1; 1 to 8)")  # fmt: skip
    add(
        "--scale",
        type=_scale,
        default=Fraction(1),
        metavar="X",
        help="of the plane that motion is "
        "looked for on (1; 0.5, 0.25 or 0.125); 0.5 is for 4K, and takes less memory",
    )
    add(
        "--cuts",
        type=_or_off(_share),
        default=UNEXPLAINED,
        metavar="X",
        help="how little of a picture is found again at a cut: less sees more cuts "
        f"({UNEXPLAINED}; 0 to 2, or off)",
    )
    add(
        "--pause",
        type=_or_off(_seconds),
        default=PAUSE,
        metavar="S",
        help="the seconds beyond which a frame that stays is left alone "
        f"({PAUSE}; 0 or more, or off)",
    )
    add(
        "--jumps",
        choices=("hold", "blend"),
        default="hold",
        help="small things that jump too far "
        "to be followed: hold them where they were, or leave what the network made of them (hold)",
    )
    add("--dedupe", type=_levels, nargs="?", const=REPEAT, metavar="X", help="for drawings on twos "
        "and threes: frames that repeat the one before, up to X grey levels, are made anew "
        f"({REPEAT:g}; 0 to 64)")  # fmt: skip


def _add_codec(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--codec", metavar="NAME", help="h264, hevc, av1, vp9, prores, ffv1, or a hardware encoder "
        "of FFmpeg's: h264_nvenc, hevc_videotoolbox ... (h264; vp9 in .webm)")  # fmt: skip
    add("--crf", type=whole(0, 63), metavar="N", help="quality, 0 the best (16 for h264; 0 to 63)")
    add("--preset", metavar="NAME", help="the encoder's own: medium, slow ...")
    add("--pixels", metavar="FORMAT", help="FFmpeg's name of a pixel format, such as yuv420p (the "
        "nearest to the source's)")  # fmt: skip
    add("--sound", choices=("keep", "stretch", "drop"), help="keep as it is, stretch with --slow, "
        "or drop")  # fmt: skip


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
