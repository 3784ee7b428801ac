"""`mv2 plan`: would a stage fit on hardware that is not here, and how long would a step take?

Light: JAX is loaded only once the arguments are known to be good.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mv2_jax.arguments import Parser, whole
from mv2_jax.infer import machines
from mv2_jax.numbers import DIFFUSION

if TYPE_CHECKING:
    from mv2_jax.infer.ahead import Plan

TYPES = ("bfloat16", "float16", "float32")


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 plan`; returns the exit code: 0, or 1 where the stage does not fit.

    Raises:
        InputError: a flag or name that is not known, or a compiler that is not installed.
    """
    args = _parser().parse_args(list(arguments))
    machines.check(args.on)
    from mv2_jax.infer import ahead

    cfg = ahead.resize(
        ahead.stage_config(args.stage, args.weights), args.size, args.frames, args.dtype
    )
    devices = machines.devices(args.on)
    rows = cfg.rule.rows * args.batch
    mesh = ahead.mesh(args.mesh, devices, cfg.stage.frames)
    shape = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    height, width = cfg.stage.size
    frames = f"{cfg.stage.frames} frames of " if cfg.stage.frames > 1 else ""
    print(f"{args.stage}: {frames}{width}x{height}, {rows} rows with guidance, {args.dtype}")
    print(
        f"on {len(devices)} x {devices[0].device_kind}; mesh: {shape or 'one device'}", flush=True
    )
    began = time.monotonic()
    plan = ahead.compile_stage(cfg, mesh, args.batch)
    print(f"compiled in {time.monotonic() - began:.0f} s")
    print("\n".join(describe(plan, cfg.stage.steps)))
    return 0 if plan.refused is None else 1


def describe(plan: Plan, steps: int) -> list[str]:
    """Lines for a person."""
    if plan.refused is not None:
        return ["it does not fit: " + " ".join(plan.refused.split())[:400]]
    total = plan.arguments + plan.temporaries + plan.outputs
    lines = [
        f"memory of each device: {_size(total)} (parameters and inputs {_size(plan.arguments)}, "
        f"temporaries {_size(plan.temporaries)})"
    ]
    if plan.seconds is None:
        return [*lines, "time: the compiler gives no estimate for this program"]
    return [
        *lines,
        f"time, as the compiler estimates it: {plan.seconds:.3g} s a step, "
        f"{plan.seconds * steps:.3g} s for {steps} steps",
    ]


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _parser() -> Parser:
    parser = Parser(
        prog="mv2 plan",
        description="Compiles a stage's network for hardware that is not here, and says how much "
        "memory of each device it takes and (TPU) how long a step. Sizes are the paper's.",
    )
    add = parser.add_argument
    add("stage", choices=DIFFUSION, help="which network")
    add("--on", required=True, metavar="NAME", help=machines.EXAMPLES)
    add(
        "--mesh",
        type=_axes,
        metavar="A=N,...",
        help="sizes of the mesh's axes data, fsdp, context, tensor",
    )
    add("--batch", type=whole(1), default=1, metavar="N", help="videos at a time (1; 1 or more)")
    add("--size", type=_pixels, metavar="WxH", help="pixels (the paper's)")
    add("--frames", type=whole(1), metavar="N", help="frames (the paper's 32; 1 or more)")
    add("--dtype", choices=TYPES, default=TYPES[0], help="of parameters and computation")
    add("--weights", metavar="DIR", help="plan for this cascade folder's networks instead")
    return parser


def _pixels(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return whole(1)(height), whole(1)(width)


def _axes(text: str) -> dict[str, int]:
    pairs = (part.partition("=") for part in text.split(","))
    return {name: whole(1)(size) for name, _, size in pairs}
