"""The `mv2` command. Light by design: JAX is loaded only where a network is about to run.

Exit codes: 0 done; 1 the disk failed; 2 bad input, with one line that says what and where;
130 interrupted; 141 nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from mv2_jax import startup
from mv2_jax.arguments import Parser, whole
from mv2_jax.errors import InputError
from mv2_jax.lookup import one_of
from mv2_jax.signals import stopped, stopped_in_order

# Commands with a parser of their own: the module whose main(arguments) runs each.
APART = {
    "interpolate": "mv2_jax.infer.interpolate",
    "words": "mv2_jax.infer.words",
    "serve": "mv2_jax.infer.serve.command",
    "studio": "mv2_jax.infer.serve.studio",
    "arena": "mv2_jax.infer.arena.command",
    "data": "mv2_jax.train.media.show",
    "precompute": "mv2_jax.train.media.precompute_command",
    "convert": "mv2_jax.convert.cli",
    "verify": "mv2_jax.convert.verify",
    "export": "mv2_jax.convert.export",
    "explain": "mv2_jax.infer.explain",
    "study": "mv2_jax.infer.study",
    "bench": "mv2_jax.infer.bench",
    "plan": "mv2_jax.infer.plan",
    "rehearse": "mv2_jax.infer.rehearse",
}
# All commands as `mv2 --help` shows them.
GROUPS = {
    "make videos": {
        "generate": "make a video from a prompt",
        "interpolate": "insert frames into any video",
        "words": "the words that the weights know",
        "serve": "serve the videos API over HTTP",
        "studio": "make videos on a page, in your browser",
    },
    "weights": {
        "info": "versions, devices, caches and weights",
        "convert": "assemble a cascade from public PyTorch checkpoints",
        "verify": "compare a converted cascade with PyTorch",
        "export": "write components in the layout of PyTorch's libraries",
    },
    "train": {
        "train": "train a recipe, such as toybox/vae",
        "data": "inspect a source of clips and pictures",
        "precompute": "encode a source once, for training",
    },
    "measure and look inside": {
        "explain": "one HTML page on how the cascade made a video",
        "eval": "score videos of withheld prompts by the judge",
        "arena": "blind comparison of videos by people",
        "study": "measure each mechanism on paired prompts",
        "bench": "quality and speed of a part, on your clip or machine",
    },
    "hardware": {
        "plan": "memory, time and price of a video on other hardware",
        "rehearse": "run a full-size cascade with random weights",
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    try:
        with stopped_in_order():
            code = _command(list(sys.argv[1:] if argv is None else argv))() or 0
            sys.stdout.flush()
            return code
    except InputError as error:
        return _fail(error, 2)
    except BrokenPipeError:
        return _unread()
    except OSError as error:
        # Input files raise InputError, so what is left is the disk.
        return _fail(_of_disk(error), 1)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except Exception:
        if stopped():
            return _fail("stopped", 130)
        raise


def _command(arguments: list[str]) -> Callable[[], int | None]:
    """What these arguments ask for, to be run."""
    _refuse_empty(arguments)
    if arguments[:2] == ["eval", "videos"]:  # which needs no judge, and has flags of its own
        return partial(importlib.import_module("mv2_jax.infer.eval_videos").main, arguments[2:])
    if arguments and arguments[0] in APART:
        return partial(importlib.import_module(APART[arguments[0]]).main, arguments[1:])
    args = _parse(arguments)
    return partial(args.run, args)


def _refuse_empty(arguments: list[str]) -> None:
    """An empty value is a shell variable that is not set, not what somebody wants."""
    for before, word in zip(["", *arguments], arguments):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and equals and not value.strip():
            raise InputError(f"{flag} has an empty value; is a variable unset?")
        if before.startswith("-") and not word.strip():
            raise InputError(f"{before.partition('=')[0]} has an empty value; is a variable unset?")
        if (
            arguments[0] != "generate" and not word.strip()
        ):  # which has words of its own for prompts
            raise InputError("an argument is empty; is a variable unset?")


def _of_disk(error: OSError) -> str:
    """What the system says of a file, as a line: its name first, without the error's number."""
    reason = (error.strerror or str(error) or "the disk failed").lower()
    return f"{error.filename}: {reason}" if error.filename else reason


def _unread() -> int:
    """Whoever read the output has gone, as `head` does: there is nothing to say, nor to whom."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _fail(error: object, code: int) -> int:
    line = " ".join(str(error).split())
    print(f"mv2: error: {line}", file=sys.stderr)
    return code


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="mv2",
        usage="mv2 [-h] [--version] COMMAND ...",
        description="Text to video in JAX. See mv2 COMMAND --help for the options of a command.",
        epilog=_listed(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(prog="mv2", metavar="COMMAND", help=argparse.SUPPRESS)
    subparsers = {
        "generate": _generate_parser(commands, not {"-h", "--help"}.isdisjoint(arguments)),
        "train": _train_parser(commands),
        "info": _info_parser(commands),
        "eval": _eval_parser(commands),
        **{name: commands.add_parser(name) for name in APART},
    }
    parser.set_defaults(run=lambda args: _top(parser, args))
    if arguments and not arguments[0].startswith("-"):
        one_of(arguments[0], subparsers, "command")
    # argparse hands a subcommand's unknown flags to the parent, which knows none of its flags.
    args, rest = parser.parse_known_args(arguments)
    # Nor does it see that prompts after a flag belong to those before it.
    if hasattr(args, "prompt") and not any(word.startswith("-") for word in rest):
        args.prompt, rest = [*args.prompt, *rest], []
    # Nor that several settings may stand behind one --set.
    if getattr(args, "set", None) and all(_setting(word) for word in rest):
        args.set, rest = [*args.set, *rest], []
    if rest:
        subparsers.get(arguments[0], parser).error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _setting(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def _listed() -> str:
    """The commands in their groups, a line each."""
    wide = max(len(name) for group in GROUPS.values() for name in group)
    return "\n\n".join(
        "\n".join([f"{title}:", *(f"  {name:<{wide}}  {what}" for name, what in group.items())])
        for title, group in GROUPS.items()
    )


def _top(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.version:
        from mv2_jax.infer.release import version

        print(f"mv2 {version()}")
    else:
        parser.print_help()
    return 0


def _generate_parser(
    commands: argparse._SubParsersAction, helping: bool
) -> argparse.ArgumentParser:
    from mv2_jax.infer import generate_flags

    parser = commands.add_parser(
        "generate",
        usage="mv2 generate [OPTIONS] PROMPT [PROMPT ...]",
        description="Makes an MP4 from each prompt, with a contact sheet (PNG) and a sidecar "
        "(JSON) from which `mv2 generate --from` makes the same video again.",
    )
    generate_flags.add(parser, helping)
    parser.set_defaults(run=_generate)
    return parser


def _train_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "train",
        description="Trains a recipe, phase after phase. Running it again continues where it "
        "stopped.",
    )
    add = parser.add_argument
    add(
        "recipe",
        metavar="RECIPE",
        help="the name of a recipe, such as toybox/vae, or a Python file with get_config()",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="A.B=V",
        help="change a setting of the recipe; may be repeated",
    )
    add("--votes", metavar="FILE", help="an arena's arena.db, for the recipe preference")
    add("--phase", metavar="NAME", help="run only this phase")
    add("--out", metavar="DIR", help="folder of all runs (runs)")
    add("--fresh", action="store_true", help="start anew, without the checkpoints of earlier runs")
    add("--dry-run", action="store_true", help="only print the plan: sizes, memory, steps, hours")
    add("--profile", metavar="A:B", default="", help="trace steps A to B with JAX's profiler")
    add("--wandb", action="store_true", help="also report to Weights & Biases")
    parser.set_defaults(run=_train)
    return parser


def _info_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "info", description="Prints versions, devices, caches, and what a cascade folder holds."
    )
    parser.add_argument("--weights", metavar="DIR", help="a cascade folder (the shipped one)")
    parser.set_defaults(run=_info)
    return parser


def _eval_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    from mv2_jax.infer import meshes

    parser = commands.add_parser(
        "eval",
        description="Makes videos of withheld prompts and scores how often they show what was "
        "asked for.",
    )
    add = parser.add_argument
    add("world", choices=["toybox"], help="the world of prompts and judge")
    add(
        "--prompts",
        type=int,
        default=200,
        metavar="N",
        help="number of prompts (200; 2 or more)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed that chooses the prompts (0; 0 to 4294967295)",
    )
    add(
        "--batch",
        type=whole(1, 1024),
        default=4,
        metavar="N",
        help="videos sampled together (4; 1 to 1024)",
    )
    add("--weights", metavar="DIR", help="a cascade folder (the shipped one)")
    add("--mesh", metavar="AXES", help=meshes.HELP)
    add("-o", "--out", metavar="DIR", help="write eval.json and eval.png there")
    parser.set_defaults(run=_eval)
    return parser


def _generate(args: argparse.Namespace) -> int | None:
    from pathlib import Path

    if args.prompts is not None:
        from mv2_jax.infer import many

        return many.command(args)
    if args.part is not None:
        raise InputError("--part goes with --prompts")
    from mv2_jax.infer import generate, outputs, request

    # Without -o, a video made again does not replace the one it repeats.
    usual = f"{Path(args.from_).stem}-again.mp4" if args.from_ else "out.mp4"
    asked = request.from_args(args)
    out = args.out or outputs.free(usual, len(asked.prompts), args.stages, args.force)
    generate.command(
        asked,
        out,
        args.stages,
        args.batch,
        force=args.force,
        metadata=not args.no_metadata,
        mesh=args.mesh,
        resident=args.resident,
    )
    return None


def _train(args: argparse.Namespace) -> int:
    from mv2_jax.train import needs

    needs.check("mv2 train")
    startup.loading()
    from mv2_jax.train import cli

    votes = [f"data.votes={args.votes}"] if args.votes else []
    return cli.main(
        args.recipe,
        [*args.set, *votes],
        phase=args.phase,
        out=args.out,
        resume=not args.fresh,
        dry=args.dry_run,
        profile=args.profile,
        reports=("wandb",) if args.wandb else (),
    )


def _eval(args: argparse.Namespace) -> None:
    from mv2_jax.infer import evaluate

    evaluate.toybox(args.weights, args.prompts, args.seed, args.batch, args.out, args.mesh)


def _info(args: argparse.Namespace) -> None:
    from mv2_jax.infer import info

    info.command(args.weights)
