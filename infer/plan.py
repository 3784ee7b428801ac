"""`mv2 plan`: would a cascade fit on hardware that is not here, and how long would a video take?

Every program of it is traced for the machine, which takes a minute and no compiler, and then,
without `--quick`, compiled for it. Light: JAX is loaded only once the arguments are found to be
good.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mv2_jax.arguments import Parser, whole
from mv2_jax.errors import InputError
from mv2_jax.infer import choices, machines
from mv2_jax.infer.settings import SETTINGS
from mv2_jax.lookup import one_of
from mv2_jax.numbers import DIFFUSION, STAGES, usual

if TYPE_CHECKING:
    from mv2_jax.infer.planning.estimate import Plan

TYPES = ("bfloat16", "float16", "float32")
AUTO = "auto"
# What may be planned: the stages that are run for it, and the programs that are shown (all: ()).
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cascade": (tuple(STAGES), ()),
    **{stage: ((stage,), ()) for stage in DIFFUSION},
    "vae": (DIFFUSION, ("encode", "decode")),
    "vfi": (("vfi",), ()),
    "encoders": (DIFFUSION, ("encoders",)),
}


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 plan`; returns the exit code: 0, or 1 where something does not fit.

    Raises:
        InputError: a flag or name that is not known, or a number that cannot be.
    """
    args = _parser().parse_args(list(arguments))
    machine = machines.machine(args.on)
    if args.quick and (args.units or args.whole):
        flag = "--units" if args.units else "--whole"
        raise InputError(f"{flag} is of what is compiled, and --quick compiles nothing")
    if args.train and args.part not in DIFFUSION:
        raise InputError(f"--train goes with {', '.join(DIFFUSION)}, not {args.part}")
    sizes = None if args.mesh in (None, AUTO) else _axes(args.mesh, machine.count)
    chosen = choices.given(args)
    given = {s.dest: getattr(args, s.dest) for s in SETTINGS}
    given = {s.dest: s.parse(given[s.dest]) for s in SETTINGS if given[s.dest] is not None}
    lacking = machines.lacking(args.on)
    if lacking and machine.chip.platform == "tpu" and not args.quick:
        raise InputError(
            f"--on {args.on}: its compiler is not installed; pip install 'mv2-jax[{lacking}]', or "
            "take --quick, which compiles nothing"
        )
    _without_devices()
    return Command(args, machine, sizes, chosen, given, bool(lacking)).run()


def _without_devices() -> None:
    """Plans run on the CPU, wherever they run: libraries for accelerators would look for some."""
    import jax

    jax.config.update("jax_platforms", "cpu")


class Command:
    """One call of `mv2 plan`, its arguments checked.

    Args:
        lacking: the machine's compiler is not installed.
    """

    def __init__(
        self,
        args: Any,
        machine: machines.Machine,
        sizes: dict[str, int] | None,
        chosen: choices.Choices,
        given: dict[str, Any],
        lacking: bool,
    ) -> None:
        from mv2_jax.infer.planning import sources

        self.args, self.machine, self.sizes, self.lacking = args, machine, sizes, lacking
        self.quick = args.quick or lacking
        # Whether there is such a slice, its compiler knows; the source takes long to be made.
        self.devices = None if self.quick else machines.devices(args.on)
        preset = chosen.pop("all", {}).get("preset")
        source = (
            sources.of_folder(args.weights, preset, args.dtype)
            if args.weights
            else sources.of_preset(preset or "paper", args.dtype)
        )
        size = args.size
        self.source, self.numbers = sources.chosen(source, chosen, given, size, args.controls)

    def run(self) -> int:
        """Prints the plan; the exit code."""
        from mv2_jax.infer.planning import report

        args = self.args
        _say(f"planning {self._what()} for {args.on}")
        tried: list[str] = []
        if args.mesh == AUTO and self.machine.count > 1:
            self.sizes, tried = self._best()
        plan = self._traced(self.sizes or self._usual())
        unit = "training step" if args.train else "video"
        if not args.json:
            print("\n".join([*report.heading(plan, self._what(), self._told(plan)), *tried, ""]))
            print("\n".join(report.table(plan)), flush=True)
        if not self.quick:
            plan = self._compiled(plan)
        tile = self.source.bundle.stages["v2v"].tile
        lines = [*report.misfits(plan, tile)]
        if args.json:
            about = {"plan": args.part, "train": args.train, "preset": self.source.bundle.name}
            about |= {"dtype": args.dtype, "compiled": not self.quick, "does_not_fit": lines}
            print(json.dumps(report.to_json(plan, about, args.price), indent=1))
            return int(bool(plan.misfits))
        if not self.quick:
            print("\n" + "\n".join(["compiled:", *report.table(plan)]))
            if self.args.units:
                print("\n" + "\n".join(report.units(plan)))
        print(
            "\n" + "\n".join([report.verdict(plan), *lines, *report.sums(plan, args.price, unit)])
        )
        print("\n" + "\n".join([*report.notes(plan), *self._remarks()]))
        return int(bool(plan.misfits))

    def _what(self) -> str:
        step = ", a training step" if self.args.train else ""
        return f"{self.source.bundle.name} {self.args.part}{step}"

    def _told(self, plan: Plan) -> str:
        """Sizes, frames and steps."""
        if self.args.train:
            return f"{self.args.dtype}, parameters and their state in float32"
        stages = self.source.bundle.stages
        said = []
        for name in DIFFUSION:
            height, width = stages[name].size
            frames = f"{stages[name].frames} x " if stages[name].frames > 1 else ""
            steps = [r.program.times for r in plan.rows if r.program.label == f"{name} step"]
            said.append(f"{name.upper()} {frames}{width}x{height}"
                        + (f" in {steps[0]} steps" if steps else ""))  # fmt: skip
        between = int(self.numbers["vfi"]["between"])
        frames = (stages["v2v"].frames - 1) * (between + 1) + 1
        many = f", {plan.batch} videos at a time" if plan.batch > 1 else ""
        return f"{self.args.dtype}; {'; '.join(said)}; {frames} frames in the end{many}"

    def _remarks(self) -> list[str]:
        lines = []
        if self.lacking:
            lines.append(
                f"{self.machine.name}'s compiler is not installed here "
                f"(mv2-jax[{machines.lacking(self.args.on)}]): read from traces alone, "
                "which is less exact"
            )
        if self.quick and not self.lacking:
            lines.append("nothing was compiled (--quick): memory is a lower bound")
        return lines

    def _usual(self) -> dict[str, int]:
        """The mesh that `mv2 generate --mesh auto` takes."""
        from mv2_jax.infer import meshes

        frames = self.source.bundle.stages["i2v"].frames
        return meshes.auto(self.machine.count, self._batch(), frames)

    def _batch(self) -> int:
        if self.args.train and self.args.batch is None:
            from mv2_jax.infer.planning import training

            return int(training.recipe(self.args.part).batch)
        return self.args.batch or 1

    def _traced(self, sizes: dict[str, int], only: str | None = None, useful: Any = None) -> Plan:
        """The plan over a mesh by its traces; `only` the programs of a name."""
        from mv2_jax.infer.planning import estimate

        stages, names = PARTS[self.args.part]
        if only:
            names = (only,)
            stages = tuple(stage for stage in stages if stage in DIFFUSION)
        if self.args.train:
            return self._training(sizes, useful)
        _say(f"tracing {', '.join(stages)} for {self.machine.name}")
        return estimate.cascade(
            self.source.on, self.machine, sizes, self.numbers, stages, self._batch(),
            self.args.resident, lambda program: not names or program.name in names,
            self._looks(), useful, self.devices,
        )  # fmt: skip

    def _looks(self) -> dict[str, Any]:
        """The raw inputs of pictures whose look counts beside the first's."""
        import numpy as np

        size = self.source.bundle.stages["v2v"].size
        shape = (self._batch(), self.args.looks, *size, 3)
        return {"looks": np.zeros(shape, np.float32)} if self.args.looks else {}

    def _training(self, sizes: dict[str, int], useful: Any) -> Plan:
        from mv2_jax.infer.planning import estimate, flops, training

        stage, batch, machine = self.args.part, self._batch(), self.machine

        def step(sizes: dict[str, int], machine: machines.Machine, devices: Any = None) -> Any:
            mesh = estimate.abstract(machine, sizes, devices)
            _say(f"tracing a training step of {stage} for {machine.count} devices")
            return training.step(self.source.on(mesh), stage, mesh, batch, self.args.dtype)

        found = step(sizes, machine, self.devices)
        if useful is None:
            alone = step({}, dataclasses.replace(machine, count=1)) if machine.count > 1 else found
            useful = [flops.count(alone.traced.jaxpr)]
        state = {"state": found.args[0], "frozen": found.args[1]}
        row = next(estimate.rows([found], useful, machine.chip, {stage: state}, "stage"))
        row = dataclasses.replace(row, outputs=0)  # the state is given away for the new one
        return estimate.Plan(machine, dict(sizes), (row,), 1)

    def _best(self) -> tuple[dict[str, int], list[str]]:
        """The best mesh, and lines that say why."""
        from mv2_jax.infer.planning import choose

        frames = self.source.bundle.stages["i2v"].frames
        useful, tried = None, []
        for sizes in choose.sensible(self.machine.count, self._batch(), frames):
            plan = self._traced(sizes, "step", useful)
            useful = useful or [row.useful for row in plan.rows]
            tried.append(choose.Tried(sizes, plan))
            _say(f"{tried[-1].name}: {plan.seconds:.3g} s by the roofline of the steps")
        found = choose.best(tried)
        return found.sizes, choose.why(tried, found)

    def _compiled(self, plan: Plan) -> Plan:
        """The plan with every program compiled."""
        from mv2_jax import sharding
        from mv2_jax.infer.planning import summed

        mesh = sharding.make_mesh(**dict(plan.mesh), devices=self.devices)
        store = summed.Store(self.machine, mesh)
        dearest = sorted(enumerate(plan.rows), key=lambda one: -one[1].cost)
        for done, (index, row) in enumerate(dearest, 1):
            began = time.monotonic()
            _say(f"compiling {row.program.label} ({done}/{len(plan.rows)})")
            limit = None if self.args.whole else self.args.compile_seconds
            made = summed.of(row, mesh, self.machine, store, limit, _say)
            plan = plan.replaced(index, compiled=made)
            took = f"{time.monotonic() - began:.0f} s"
            told = made.refused or f"{made.total / machines.GIB:.2f} GiB a device"
            _say(f"compiled {row.program.label} in {took}: {told}")
        return plan


def _say(line: str) -> None:
    print(f"mv2: {line}", file=sys.stderr, flush=True)


def _parser() -> Parser:
    parser = Parser(
        prog="mv2 plan",
        usage="mv2 plan [OPTIONS] --on NAME PART",
        description="Estimates what a cascade needs on hardware that is not here: memory, FLOPs, "
        "collectives and time of every program, then seconds per video. It first answers from "
        "traces (a minute), then compiles each kind of unit in them for the machine, once, and "
        "adds up; --quick leaves that out.",
    )
    add = parser.add_argument
    add("part", choices=list(PARTS), help="the whole cascade, or a part of it")
    add("--on", required=True, metavar="NAME", help=machines.EXAMPLES)
    add("--quick", action="store_true", help="only trace: an answer in a minute, no compiler")
    add(
        "--compile-seconds",
        type=whole(0, 86400),
        default=120,
        metavar="N",
        help="time for compiling a program's units, the dearest first; what is left is taken from "
        "the roofline, and asking again goes on (120; 0: no limit)",
    )
    add("--units", action="store_true", help="show each program's units: what takes the time")
    add(
        "--whole",
        action="store_true",
        help="compile programs in one piece (a UNet of full size takes an hour on two cores)",
    )
    add(
        "--mesh",
        metavar="A=N,...",
        help="sizes of the mesh axes data, fsdp, context, tensor; auto: try sensible ones and "
        "take the best (as mv2 generate --mesh auto does)",
    )
    add("--train", action="store_true", help="plan a training step of t2i, i2v or v2v instead")
    add("--batch", type=whole(1, 1024), metavar="N", help="videos sampled together (1; with "
        "--train the recipe's; 1 to 1024)")  # fmt: skip
    add(
        "--price",
        type=_price,
        metavar="X",
        help="price of an hour of the whole machine, in any currency (none; 0 or more)",
    )
    add("--json", action="store_true", help="print JSON")
    add("--size", type=_pixels, metavar="WxH", help="size of the video in pixels (the preset's)")
    add(
        "--dtype",
        choices=TYPES,
        default=TYPES[0],
        help="type of parameters and computation (bfloat16)",
    )
    add("--weights", metavar="DIR", help="plan for this cascade folder instead of a preset")
    add(
        "--controls",
        type=whole(1, 9),
        default=1,
        metavar="N",
        help="number of ControlNets (1; 1 to 9)",
    )
    add(
        "--looks",
        type=whole(1, 64),
        metavar="N",
        help="number of reference pictures (--look of mv2 generate; none; 1 to 64)",
    )
    add(
        "--resident",
        choices=("all", "stage"),
        default="all",
        help="weights kept on the devices, as in mv2 generate (all)",
    )
    _add_generates(parser)
    return parser


def _add_generates(parser: Parser) -> None:
    """The flags of `mv2 generate` that change its programs."""
    numbers = parser.add_argument_group("mv2 generate's numbers")
    known = usual()
    for setting in SETTINGS:
        numbers.add_argument(
            setting.flag,
            dest=setting.dest,
            metavar=setting.about.metavar,
            help=setting.help(known),
        )
    others = parser.add_argument_group("mv2 generate's samplers, lengths and sizes")
    for choice in choices.CHOICES:
        default = " (paper)" if choice.name == "preset" else ""
        text = f"{choice.command_help}{choice.range}{default}"
        others.add_argument(choice.flag, dest=choice.dest, metavar=choice.metavar, help=text)


def _price(text: str) -> float:
    import argparse
    import math

    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"takes an amount of 0 or more, not {text!r}")
    return value


def _pixels(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return whole(1)(height), whole(1)(width)


def _axes(text: str, devices: int) -> dict[str, int]:
    """{axis: size} of "data=2,context=4". Raises InputError where it is not that."""
    import math

    from mv2_jax.infer import meshes

    axes = ("data", "fsdp", "context", "tensor")
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        one_of(name, axes, "axis", "--mesh")
        if not size.isdecimal() or int(size) < 1 or name in sizes:
            raise InputError(f"--mesh {text}: each axis takes one whole number, such as {name}=2")
        sizes[name] = int(size)
    if math.prod(sizes.values()) != devices:
        fitting = meshes.spelled(meshes.auto(devices, 1, devices)) or "no --mesh"
        raise InputError(
            f"--mesh {text}: its sizes multiply to {math.prod(sizes.values())}, and the machine "
            f"has {devices} devices: {fitting} would fit"
        )
    return sizes
