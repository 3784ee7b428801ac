"""`mv2 bench`: how good and how fast, measured on what you have.

`mv2 bench vfi CLIP` leaves frames of a clip out, lets each method predict them, and compares;
`mv2 bench cascade` times each network of a cascade beside PyTorch's on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mv2_jax.arguments import Parser
from mv2_jax.errors import InputError
from mv2_jax.infer import bench_cascade, interpolators
from mv2_jax.lookup import nearest

METHODS = ("nearest", "blend", "dis", "mv2", "torch")


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 bench`; returns the exit code.

    Raises:
        InputError: a bad flag, or a clip that cannot be used.
    """
    args = _parser().parse_args(list(arguments))
    return args.command(args)


def _vfi(args: argparse.Namespace) -> int:
    for name in args.vfi:
        if interpolators.check(name) == "none":
            raise InputError("--vfi none has nothing to measure; `nearest` is measured always")
        for times in args.times if "mv2" in args.methods else ():
            interpolators.fits(name, 3 if times > 2 else 2, "--times 2")
    from mv2_jax.infer import bench_vfi

    bench_vfi.command(args)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="mv2 bench", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(metavar="WHAT", required=True)
    vfi = commands.add_parser(
        "vfi",
        help="predict frames left out of a clip",
        description="Leaves frames of a clip out, predicts them, and prints PSNR and SSIM (means "
        "over frames, RGB of 8 bits) and the seconds a frame takes. Gaps with a cut are skipped.",
    )
    add = vfi.add_argument
    add("clip", metavar="CLIP", help="any video, or toybox: renders that training never sees")
    add(
        "--times",
        type=_times,
        default=(2, 3),
        metavar="N,...",
        help="keep each Nth frame (2,3; 2 to 16)",
    )
    add("--gaps", type=_count, metavar="N", help="number of gaps, evenly spread (all; 1 or more)")
    add(
        "--views",
        type=_views,
        default=(1, 4),
        metavar="N,...",
        help="passes to average, as in mv2 interpolate (1,4; 1 to 8)",
    )
    several = f"{interpolators.HELP}; several with commas"
    add("--vfi", type=_split, default=("rife",), metavar="NAME,...", help=several)
    add("--methods", type=_methods, default=METHODS, metavar="A,...", help=f"{','.join(METHODS)}")
    vfi.set_defaults(command=_vfi)
    cascade = commands.add_parser(
        "cascade",
        help="each network of a cascade beside PyTorch's, on a CPU",
        description="Times each network beside diffusers' or transformers', on the same random "
        "weights and inputs, in fp32 on the CPU: two processes in alternation. Prints torch's "
        "time, CPU time and peak memory over ours; above 1, this package is ahead. The video UNet "
        "keeps about 13 GB of memory in use and 5 GB of disk in TMPDIR; SDXL 22 and 11.",
    )
    add = cascade.add_argument
    add("--only", type=_networks, metavar="NAME,...", help=",".join(bench_cascade.NETWORKS))
    add(
        "--runs",
        type=_count,
        default=5,
        metavar="N",
        help="runs of each, of which the median counts (5)",
    )
    add("--threads", type=_count, metavar="N", help="threads of each side (all cores)")
    add("--sdxl", action="store_true", help="also time SDXL's UNet, which needs 22 GB of memory")
    add("--plain", action="store_true", help="compile with XLA's default options, for comparison")
    add("--small", action="store_true", help="tiny networks, to see that it runs")
    add("--json", action="store_true", help="print JSON lines: every run, medians and ratios")
    cascade.set_defaults(command=bench_cascade.command)
    return parser


def _numbers(text: str, low: int, high: int) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and low <= int(part) <= high for part in parts):
        raise argparse.ArgumentTypeError(
            f"takes whole numbers from {low} to {high} and commas, not {text!r}"
        )
    return tuple(dict.fromkeys(map(int, parts)))


def _times(text: str) -> tuple[int, ...]:
    return _numbers(text, 2, 16)


def _views(text: str) -> tuple[int, ...]:
    return _numbers(text, 1, 8)


def _count(text: str) -> int:
    return _numbers(text, 1, 10**6)[0]


def _networks(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in bench_cascade.NETWORKS:
            known = ", ".join(bench_cascade.NETWORKS)
            near = nearest(name, bench_cascade.NETWORKS)
            raise argparse.ArgumentTypeError(f"there is no network {name!r}{near}; known: {known}")
    return names


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(METHODS):
        raise argparse.ArgumentTypeError(f"takes some of {','.join(METHODS)}, not {text!r}")
    return names
