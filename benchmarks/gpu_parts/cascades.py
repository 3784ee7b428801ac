"""Part a: the presets' cascades end to end on random weights, with seconds a stage and MFU."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpu_parts import jobs, networks
from gpu_parts.bench import TUNED, Bench, Part
from mv2_jax.diffusion import keys
from mv2_jax.infer import rehearse

GUIDANCE = 7.5


@dataclass(frozen=True)
class Arm:
    """One way to sample a preset.

    `steps`: of T2I, I2V and V2V, of which V2V makes the last `refine` (all where None).
    `rows`: evaluations of the video network a step; 1 is what distilled modules want.
    """

    preset: str
    steps: tuple[int, int, int]
    refine: int | None
    rows: int

    @property
    def name(self) -> str:
        made = self.refine or self.steps[2]
        return f"{self.preset} {self.steps[0]}/{self.steps[1]}/{made}, {self.rows} video row(s)"

    def numbers(self, stage: str) -> dict[str, Any]:
        """What the cascade's method is called with."""
        if stage == "vfi":
            return {}
        numbers: dict[str, Any] = {"keys": keys.seeds([0])}
        numbers["steps"] = self.steps[rehearse.STAGES.index(stage)]
        if stage == "t2i":
            return {**numbers, "guidance": GUIDANCE}
        # Equal scales of picture and text need no evaluation between: two rows.
        scale = 1.0 if self.rows == 1 else GUIDANCE
        numbers |= {"guidance": scale, "image_guidance": scale}
        if stage == "v2v":
            numbers["strength"] = (self.refine or self.steps[2]) / self.steps[2]
        return numbers


ARMS = (
    Arm("sd15", (25, 25, 25), 8, 2),
    Arm("paper", (25, 25, 25), 8, 2),
    Arm("paper", (25, 4, 4), None, 1),
)


@dataclass
class Planned:
    """An arm with its programs under way."""

    arm: Arm
    preset: Any
    trees: dict[str, Any]
    staged: jobs.Staged

    def cascade(self, params: dict[str, Any], dtype: Any) -> Any:
        four = rehearse.build(self.preset, params, dtype)
        return dataclasses.replace(four, programs=self.staged)


def plan(
    bench: Bench, arms: tuple[Arm, ...] = ARMS, options: dict[str, Any] | None = None
) -> list[Planned]:
    """Asks for every program of every arm: its stages run on zeros, and their programs do not."""
    made = []
    for arm in arms:
        preset = networks.preset(arm.preset, bench.small)
        staged = jobs.Staged(bench.compiler, lambda: bench.part_ends, options)
        planned = Planned(arm, preset, bench.weights.shapes(preset), staged)
        four, given = planned.cascade(planned.trees, bench.dtype), {}
        for stage in rehearse.STAGES:
            given[stage] = rehearse.run(four, preset, stage, given, **arm.numbers(stage))
        staged.planning = False
        made.append(planned)
    return made


def run(bench: Bench, planned: list[Planned], part: str = "a") -> None:
    """Runs each arm, and again where the first run left time for it, without what comes once."""
    for index, one in enumerate(planned):
        # What is left is shared out so that a slow arm does not take the time of those behind it.
        whole_end = bench.part_ends
        bench.part_ends = time.monotonic() + bench.left / (len(planned) - index)
        try:
            began = time.monotonic()
            four = one.cascade(bench.weights.make(one.trees), bench.dtype)
            _arm(bench, one, four, part, "first run")
            if time.monotonic() - began < bench.left:
                _arm(bench, one, four, part, "second run")
        except jobs.Late as late:
            bench.results.remark(part, f"{one.arm.name}: cut, {late}")
        except Exception as error:  # out of memory, say: the next arm may fit
            bench.results.remark(part, f"{one.arm.name}: {_short(error)}")
        bench.part_ends = whole_end
        four = None
        following = planned[index + 1 :]
        if all(later.arm.preset != one.arm.preset for later in following):
            bench.weights.drop("t2i")  # each preset has its own picture network


def _arm(bench: Bench, one: Planned, four: Any, part: str, which: str) -> None:
    """Runs the four stages of one arm and adds their rows and the sum."""
    given, rows = {}, []
    for stage in rehearse.STAGES:
        began, out = time.monotonic(), None
        try:
            out = rehearse.run(four, one.preset, stage, given, **one.arm.numbers(stage))
            given[stage] = jax.block_until_ready(out)
        finally:
            calls, waited = one.staged.take()
            row = _row(bench, one, stage, calls, time.monotonic() - began - waited)
            if out is None:
                row["how"] = "cut before its end"
                bench.results.row(part, arm=one.arm.name, run=which, **row)
        row["finite"] = bool(np.isfinite(np.asarray(jnp.sum(out))))
        rows.append(row)
        bench.results.row(part, arm=one.arm.name, run=which, **row)
    total = sum(row["seconds"] for row in rows)
    flops = sum(row["PFLOP"] for row in rows) * 1e15
    scaled = any(row["how"] != "measured whole" for row in rows)
    bench.results.row(
        part,
        arm=one.arm.name,
        run=which,
        stage="video",
        seconds=total,
        how="sum, some scaled" if scaled else "measured whole",
        PFLOP=flops / 1e15,
        **{"MFU %": bench.mfu(flops, total), "peak GiB so far": rehearse.peak() / 2**30},
    )


def _row(
    bench: Bench, one: Planned, stage: str, calls: list[jobs.Call], seconds: float
) -> dict[str, Any]:
    """A stage's cells; a chain that was cut is scaled from the steps that it made.

    Args:
        seconds: the stage took, without waiting for programs.
    """
    chain = [call for call in calls if call.steps]
    left_out = any(call.left_out for call in calls)
    flops = sum(call.flops for call in calls)
    how, step, missing = "measured whole", None, 0.0
    if chain:
        steps = sum(call.steps for call in chain)
        # The first group of steps loads the kernels; the others show the pace.
        pace = chain[1:] if len(chain) > 1 else chain
        step = sum(call.seconds for call in pace) / sum(call.steps for call in pace)
        asked = one.arm.steps[rehearse.STAGES.index(stage)]
        asked = one.arm.refine or asked if stage == "v2v" else asked
        if left_out:
            how = f"measured {steps} steps, scaled to {asked}"
            flops += (asked - steps) * sum(call.flops for call in chain) / steps
            missing = (asked - steps) * step
    jobs_of = [job for job in one.staged.jobs if job.name.startswith(f"{stage} ") and job.runs]
    rest = seconds - sum(call.seconds for call in chain)
    return {
        "stage": stage,
        "seconds": seconds + missing,
        "how": how,
        "s a step": step,
        "s besides steps": rest,
        "PFLOP": flops / 1e15,
        "MFU %": bench.mfu(flops, seconds + missing),
        "largest program GiB": max((job.bytes for job in jobs_of), default=0) / 2**30,
        "peak GiB so far": rehearse.peak() / 2**30,
        "compiling s, longest": max((job.seconds for job in jobs_of), default=0.0),
        "compiling beside": bench.compiler.busy,
    }


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def again(bench: Bench, planned: None) -> None:
    """`paper` once more, its programs compiled with XLA trying algorithms on the device.

    They compile now and not from the start, because the search would disturb what is measured.
    """
    if bench.left < 60:
        raise jobs.Late(f"{bench.left:.0f} s were left, and compiling alone takes more")
    options = TUNED if jax.default_backend() == "gpu" else None
    bench.results.remark("f", f"compiled with {options}, on top of the run's flags")
    run(bench, plan(bench, ARMS[1:2], options), "f")


TUNED_PART = Part("f", "`paper` with XLA trying algorithms", 240, lambda bench: None, again)
PART = Part("a", "cascades end to end, bf16, random weights", 170, plan, run)
