"""`mv2 arena A/ B/`: people compare videos, blind; `mv2 arena --report`: what they found."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mv2_jax.arguments import Parser, whole
from mv2_jax.errors import InputError

_NEEDED = ("fastapi", "uvicorn")


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 arena`; returns the exit code.

    Raises:
        InputError: a bad flag, folders that cannot be compared, an address that is taken.
    """
    args = _parser().parse_args(list(arguments))
    if args.report:
        if args.folders:
            raise InputError(f"--report reads the arena in {args.out} (-o); it takes no folders")
        from mv2_jax.infer.arena import report

        report.command(args.out, args.everyone)
        return 0
    if args.everyone:
        raise InputError("--everyone goes with --report")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'mv2 arena needs {missing[0]}; pip install "mv2-jax[serve]"')
    return _serve(args)


def _serve(args: Any) -> int:
    from mv2_jax.infer.arena.app import build
    from mv2_jax.infer.serve import guard, listen

    arena = _arena(args)
    try:
        with listen.bound(args.host, args.port) as address:
            tokens = _raters(arena, args.raters, args.each)
            port = address.getsockname()[1]
            address.listen(128)
            host = f"[{args.host}]" if ":" in args.host else args.host
            print(f"mv2: an arena of {_of(arena)}; a link a rater:", flush=True)
            for number, token in enumerate(tokens, 1):
                done = [ballot["done"] for ballot in arena.ballots(token)]
                link = f"http://{host}:{port}/r/{token}"
                print(f"  rater {number}: {link}  ({sum(done)} of {len(done)} done)", flush=True)
            listen.run(build(arena, guard.is_loopback(args.host)), address)
    finally:
        arena.close()
    print(f"mv2: stopped; the same command goes on, mv2 arena --report -o {args.out} says what was "
          "found", file=sys.stderr)  # fmt: skip
    return 0


def _arena(args: Any) -> Any:
    """The arena of -o: made of the folders, or the one that is there. Raises InputError."""
    from mv2_jax.infer.arena import build

    out, folders = Path(args.out), [Path(folder) for folder in args.folders]
    there = build.database(out).is_file()
    if not folders:
        return build.load(out)
    if len(folders) < 2:
        raise InputError(f"an arena takes two folders or more, not {folders[0]} alone")
    if not there:
        if out.exists():
            raise InputError(f"{out} is there, and no arena; choose another -o")
        return build.make(folders, out, args.overlap, args.gold)
    arena = build.load(out)
    before = [row["folder"] for row in arena.rows("SELECT folder FROM systems ORDER BY number")]
    if before != [str(folder.resolve()) for folder in folders]:
        arena.close()
        raise InputError(f"{out} is an arena of {', '.join(before)}; choose another -o")
    return arena


def _raters(arena: Any, count: int, each: int) -> list[str]:
    """The tokens of `count` raters or more; those there were keep theirs, and their ballots."""
    for _ in range(count - len(arena.rows("SELECT token FROM raters"))):
        arena.add_rater(each)
    return [row["token"] for row in arena.rows("SELECT token FROM raters ORDER BY number")]


def _of(arena: Any) -> str:
    """What is compared, in words."""
    names = [row["name"] for row in arena.rows("SELECT name FROM systems ORDER BY number")]
    kinds = {row["kind"]: row["many"] for row in arena.rows(
        "SELECT kind, COUNT(*) AS many FROM comparisons GROUP BY kind")}  # fmt: skip
    gold = kinds.pop("gold", 0)
    return (f"{', '.join(names)}: {sum(kinds.values())} comparisons, {kinds.get('overlap', 0)} of "
            f"them seen by every rater, and {gold} to see who looks")  # fmt: skip


def _parser() -> Parser:
    parser = Parser(
        prog="mv2 arena",
        usage="mv2 arena A/ B/ [C/ ...] [options]\n       mv2 arena --report [-o DIR]",
        description="People compare videos of the same prompts, side by side and blind, on a page "
        "of their own; --report says what they found.",
    )
    add = parser.add_argument
    add("folders", nargs="*", metavar="DIR", help="folders of videos; pairs are of equal prompts "
        "(in sidecars), else of equal file names. None: go on with the arena in -o")  # fmt: skip
    add("-o", "--out", default="arena", metavar="DIR", help="the arena's folder: videos and "
        "arena.db (arena)")  # fmt: skip
    add("--raters", type=whole(1, 1000), default=1, metavar="N",
        help="links to print; more may be added later (1; 1 to 1000)")  # fmt: skip
    add("--each", type=whole(1, 10**5), default=100, metavar="N",
        help="comparisons a new rater gets (100; 1 to 100000)")  # fmt: skip
    add("--overlap", type=whole(0, 10**5), default=10, metavar="N",
        help="comparisons that every rater sees, for agreement (10; 0 to 100000)")  # fmt: skip
    add("--gold", type=whole(0, 1000), default=2, metavar="N", help="comparisons with a damaged "
        "copy, which show who looks (2; 0 to 1000)")  # fmt: skip
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (127.0.0.1)")
    add("--port", type=whole(0, 65535), default=8010, metavar="N",
        help="to listen on (8010; 0 to 65535, 0: any)")  # fmt: skip
    add("--report", action="store_true", help="print what the votes say, and write tables (CSV) "
        "and charts (PNG) to -o")  # fmt: skip
    add("--everyone", action="store_true", help="count raters, too, who missed half of the damaged "
        "copies or more")  # fmt: skip
    return parser
