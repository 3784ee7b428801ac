"""The command line of `mv2 precompute`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mv2_jax import startup
from mv2_jax.arguments import Parser, whole
from mv2_jax.arguments import part as part_of
from mv2_jax.train import needs


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = _parser().parse_args(list(arguments))
    needs.check("mv2 precompute", {**needs.MODULES, **needs.DATA}, "train,data")
    startup.loading()
    from mv2_jax.train import cascades, recipe
    from mv2_jax.train import phase as phases
    from mv2_jax.train.media import precompute
    from mv2_jax.train.media.index import summary
    from mv2_jax.train.media.settings import from_texts
    from mv2_jax.train.tasks.t2i import PictureTask
    from mv2_jax.train.video import VideoTask

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
        description="Encodes the samples of a source once: latents, image features and text "
        "states. Training reads them with data.source=precomputed. Running it again continues; "
        "--part shares the work between machines.",
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a folder, tars, ArrayRecord files, a TFDS dataset ...")
    add("-o", "--out", required=True, metavar="DIR", help="folder of the shards")
    add("--cascade", required=True, metavar="FOLDER", help="the cascade whose networks encode them")
    add(
        "--stage",
        choices=("t2i", "i2v", "v2v"),
        default="i2v",
        help="the stage to encode for (i2v)",
    )
    add(
        "--size",
        type=int,
        nargs="+",
        default=[],
        metavar="PIXELS",
        help="frame size, as in the recipe (the recipe's)",
    )
    add("--frames", type=whole(1, 1024), default=0, metavar="N",
        help="frames of a clip (the recipe's; 1 to 1024)")  # fmt: skip
    add(
        "--set",
        nargs="+",
        action="extend",
        metavar="NAME=VALUE",
        help="a setting of data, as in a recipe; may be repeated",
    )
    add("--passes", type=whole(1), default=1, metavar="N",
        help="times each sample is drawn, with its own clip and crop (1; 1 or more)")  # fmt: skip
    add("--shard", type=whole(1), default=256, metavar="N",
        help="samples of a shard (256; 1 or more)")  # fmt: skip
    add("--batch", type=whole(1), default=4, metavar="N",
        help="samples encoded together (4; 1 or more)")  # fmt: skip
    add(
        "--part",
        default="",
        metavar="I/N",
        help="this is process I of N that share the shards (0/N to N-1/N)",
    )
    return parser


def _part(text: str) -> tuple[int, int]:
    """What `--part` says; by default this process's share of those that JAX was told of."""
    if not text:
        import jax

        from mv2_jax.train import processes

        processes.initialise()
        return jax.process_index(), jax.process_count()
    return part_of(text)
