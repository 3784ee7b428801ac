"""The command line of `mv2 precompute`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from mv2_jax.arguments import Parser, whole
from mv2_jax.arguments import part as part_of
from mv2_jax.train import cascades, needs, processes, recipe
from mv2_jax.train import phase as phases
from mv2_jax.train.media import precompute
from mv2_jax.train.media.index import summary
from mv2_jax.train.media.settings import from_texts
from mv2_jax.train.tasks.t2i import PictureTask
from mv2_jax.train.video import VideoTask


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = _parser().parse_args(list(arguments))
    needs.check("mv2 precompute", {**needs.MODULES, **needs.DATA}, "train,data")
    part = _part(args.part)
    cfg = recipe.load(f"own/{args.stage}")[1].phases[args.stage]
    with cfg.unlocked():
        cfg.cascade, cfg.data = args.cascade, from_texts(args.set or ())
        cfg.size, cfg.frames = tuple(args.size), args.frames
    cfg.data.update(root=args.source, passes=args.passes)
    phases.check(cfg)
    cascades.complete(cfg)
    held = recipe.components_in(Path(args.cascade))
    begin = cascades.parts(held, pictures=args.stage == "t2i")
    folder = Path(args.out)
    if args.stage == "t2i":
        task = PictureTask(cfg, begin, folder)
    else:
        task = VideoTask(args.stage, cfg, begin, folder)
    made, broken = precompute.run(task, folder, args.passes, args.shard, args.batch, part)
    if broken:
        print(summary(broken, made + len(broken)), flush=True)
    print(f"{made} samples made: {folder}", flush=True)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="mv2 precompute",
        description="Latents, image features and text states of a source's samples, once: training "
        "then reads them with data.source=precomputed. Run it again to go on, or on several "
        "machines with --part.",
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a folder, tars, ArrayRecord files, a TFDS data set ...")
    add("-o", "--out", required=True, metavar="DIR", help="where the shards go")
    add("--cascade", required=True, metavar="FOLDER", help="whose networks make them")
    add("--stage", choices=("t2i", "i2v", "v2v"), default="i2v", help="for which stage (i2v)")
    add("--size", type=int, nargs="+", default=[], metavar="PIXELS", help="as size in the recipe")
    add("--frames", type=whole(1, 1024), default=0, metavar="N",
        help="as frames in the recipe (the recipe's; 1 to 1024)")  # fmt: skip
    add("--set", nargs="+", action="extend", metavar="NAME=VALUE", help="as data.NAME in a recipe")
    add("--passes", type=whole(1), default=1, metavar="N",
        help="draws of each sample, part and cut (1; 1 or more)")  # fmt: skip
    add("--shard", type=whole(1), default=256, metavar="N",
        help="samples a shard (256; 1 or more)")  # fmt: skip
    add("--batch", type=whole(1), default=4, metavar="N",
        help="samples at a time (4; 1 or more)")  # fmt: skip
    add(
        "--part",
        default="",
        metavar="I/N",
        help="of N processes that share the shards, number I (0/N to N-1/N)",
    )
    return parser


def _part(text: str) -> tuple[int, int]:
    """What `--part` says; by default this process's share of those that JAX was told of."""
    if not text:
        processes.initialise()
        return jax.process_index(), jax.process_count()
    return part_of(text)
