"""The commands' parser: argparse whose errors are one line, with the nearest flag."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import NoReturn

from mv2_jax.errors import InputError
from mv2_jax.lookup import nearest


class Parser(argparse.ArgumentParser):
    """argparse that raises InputError; flags are never abbreviated."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            flag = message.removeprefix(prefix).split()[0]
            known = [option for action in self._actions for option in action.option_strings]
            message = f"unknown argument {flag}{nearest(flag.partition('=')[0], known)}"
        raise InputError(f"{message} (see {self.prog} --help)")


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A flag's `type`: whole numbers from `low` to `high`, or without end."""
    span = f"from {low} to {high}" if high else f"of {low} or more"

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= (high or int(text)):
            raise argparse.ArgumentTypeError(f"takes a whole number {span}, not {text!r}")
        return int(text)

    return parse


def part(text: str) -> tuple[int, int]:
    """`--part I/N`: of N processes that share the work the one of number I, as launchers count.

    Raises:
        InputError: it is not I/N, from 0/N to N-1/N.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if not match or int(match[1]) >= int(match[2]):
        raise InputError(f"--part takes I/N, such as 0/4 to 3/4, not {text!r}")
    return int(match[1]), int(match[2])
