"""`mv2 verify`: does a cascade compute what PyTorch computes from the sources it was made of?

Every component's source is loaded into the network that diffusers or transformers has for it, and
both sides get the same random inputs in fp32, from the weights as they are stored here. Components
are compared one after the other; while one is, PyTorch's network and ours are in memory together,
in fp32, and the tables that random inputs do not reach. Their numbers are compared too, tensor by
tensor, and the stages' schedules with diffusers' schedulers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mv2_jax import bundle as bundles
from mv2_jax import files, startup
from mv2_jax.arguments import Parser
from mv2_jax.convert import cli
from mv2_jax.errors import InputError
from mv2_jax.infer import meshes

BOUND = 1e-4  # of the largest difference, as a share of the largest magnitude; fp32 on both sides


@dataclass(frozen=True)
class Verdict:
    """How far two networks are apart: as shares of the reference's largest magnitude.

    `notes` are differences that such outputs do not show.
    """

    component: str
    against: str
    largest: float
    mean: float
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether that is rounding. NaN is not."""
        return self.largest <= BOUND and not self.notes


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 verify`; returns the exit code: 0 all the same, 1 some differ.

    Raises:
        InputError: a folder that `mv2 convert` did not write, or sources that are gone or changed.
    """
    args = _parser().parse_args(list(arguments))
    bundle = bundles.read(args.folder)
    origins, asked = read_origins(bundle)
    names = args.component or list(bundle.components)
    for name in names:
        bundle.config(name)  # says what is there, for a name that is not
    bundle.verify(names)
    startup.loading("PyTorch")
    with cli.needs("torch", "diffusers", "transformers"):
        from mv2_jax.convert import compare, kinds
    _unchanged(origins)
    with kinds.beside(asked.get("kinds", ())):
        built = compare.rebuild(bundle, origins, asked.get("ignore", ()))
        stages = () if args.component else tuple(bundle.stages)
        return _compared(bundle, built, names, stages, origins, asked)


def _compared(
    bundle: Any, built: Any, names: Sequence[str], stages: Sequence[str], origins: Any, asked: Any
) -> int:
    """Compares components and stages, a line each; the exit code."""
    from mv2_jax.convert import compare, compare_stages

    meshes.say(hint=False)
    print(f"{'component':<18} {'largest':>9} {'mean':>9}  verdict (bound {BOUND:g})")
    worst = 0
    for name in names:
        if name not in origins:
            print(f"{name:<18} {'':>9} {'':>9}  has no source to compare with")
            continue
        if not compare.comparable(built[name]):
            print(f"{name:<18} {'':>9} {'':>9}  is no network of PyTorch's libraries")
            continue
        worst |= _say(compare.component(bundle, built, name, asked.get("norm_scope")))
    for name in stages:
        worst |= _say(compare_stages.stage(bundle, built, asked, name))
    return worst


def _say(verdict: Verdict) -> bool:
    """Prints a line, and three at most on what no output shows; whether they differ."""
    word = "the same as" if verdict.same else "DIFFERENT from"
    numbers = f"{verdict.largest:9.1e} {verdict.mean:9.1e}"
    print(f"{verdict.component:<18} {numbers}  {word} {verdict.against}", flush=True)
    for note in verdict.notes[:3]:
        print(f"{'':<18} {note}")
    if len(verdict.notes) > 3:
        print(f"{'':<18} ... and {len(verdict.notes) - 3} more like that")
    return not verdict.same


def read_origins(bundle: bundles.Bundle) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where each component came from, and what the user said at conversion.

    Raises:
        InputError: nothing says so.
    """
    path = bundle.folder / "sources.json"
    try:
        origins = json.loads(path.read_text(encoding="utf-8"))
        return origins, origins.pop("asked", {})
    except FileNotFoundError:
        raise InputError(
            f"{bundle.folder} was not made by mv2 convert: there is no {path.name} in it"
        ) from None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error})") from None


def _unchanged(origins: Mapping[str, Any]) -> None:
    """Compares the sources' checksums with those at conversion; a source in two slots once."""
    from mv2_jax.convert import sources

    sums = functools.cache(files.sha256)
    for name, origin in origins.items():
        path = origin["path"]
        try:
            now = {file.name: sums(file) for file in sources.paths(path, origin["variant"])}
        except (OSError, ValueError):
            raise InputError(f"{name}: its source {path} is gone") from None
        if now != origin["sha256"]:
            raise InputError(f"{name}: its source {path} has changed since; convert it again")


def apart(component: str, against: str, pairs: Sequence[tuple[Any, Any]]) -> Verdict:
    """The verdict on (ours, theirs) arrays: the worst of all pairs."""
    largest, mean = 0.0, 0.0
    for ours, theirs in pairs:
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        if ours.shape != theirs.shape:
            note = f"it gives {ours.shape}, the reference {theirs.shape}"
            return Verdict(component, against, float("nan"), float("nan"), (note,))
        gap = np.abs(ours - theirs) / np.abs(theirs).max()
        # max() of Python would lose a NaN that comes second.
        largest, mean = np.fmax(largest, gap.max()), np.fmax(mean, gap.mean())
        if not np.isfinite(gap).all():
            largest = mean = float("nan")
            break
    return Verdict(component, against, float(largest), float(mean))


def _parser() -> Parser:
    parser = Parser(
        prog="mv2 verify",
        description="Compares every network of a converted cascade with PyTorch's, filled from the "
        "same sources, on random inputs. The sources must lie where they were converted from.",
    )
    parser.add_argument("folder", metavar="DIR", help="a cascade folder that mv2 convert wrote")
    parser.add_argument(
        "--component",
        action="append",
        metavar="NAME",
        help="compare only this one (all); may be repeated",
    )
    return parser
