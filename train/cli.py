"""`mv2 train RECIPE`: what happens between the command line and the loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax

from mv2_jax.errors import InputError
from mv2_jax.infer import cache, meshes
from mv2_jax.lookup import nearest
from mv2_jax.train import boards, cascades, loop, optim, overrides, processes, unread
from mv2_jax.train import dry as plans
from mv2_jax.train import phase as phases
from mv2_jax.train import profile as profiles
from mv2_jax.train import recipe as recipes
from mv2_jax.train.task import compute_dtype


def main(
    recipe: str,
    overrides_: list[str] | None = None,
    phase: str | None = None,
    out: str | None = None,
    resume: bool = True,
    dry: bool = False,
    profile: str = "",
    reports: tuple[str, ...] = (),
) -> int:
    """Trains a recipe, phase after phase; finished phases are kept, a cut one is resumed.

    Args:
        recipe: "toybox/vae", or a Python file with get_config().
        overrides_: settings such as "optim.lr=1e-4" (see mv2_jax.train.overrides).
        phase: only this one; the phases before it must have finished.
        out: the folder of all runs, "runs" by default; the recipe's is `<out>/<recipe>`.
        resume: False forgets what earlier runs of these phases left.
        dry: only prints what each phase would train, hold and take (see `train.dry`).
        profile: steps to trace, as "20:25", in every phase.
        reports: boards beside those of the settings (see mv2_jax.train.boards).

    Returns:
        0, or 130 where a signal stopped a phase (its checkpoint is written).

    Raises:
        InputError: an unknown recipe, phase or setting, weights to begin from that are missing, or
            a phase that was run before with other settings or from other weights.
    """
    if out and "://" in out:
        raise InputError(f"--out {out}: runs are written to a folder here; mount the bucket as one")
    processes.initialise()
    with processes.together():
        short, cfg = recipes.load(recipe)
        overrides.apply(cfg, overrides_ or [])
        for one in cfg.phases.values():
            one.profile = profile or one.profile
            one.reports = (*one.reports, *reports)
        return _train(short, cfg, phase, Path(out or "runs"), resume, dry)


def _train(short: str, cfg: Any, phase: str | None, root: Path, resume: bool, dry: bool) -> int:
    """`main`, once all processes are there and the recipe is known."""
    if phase is not None and phase not in cfg.order:
        raise InputError(f"recipe {short} has no phase {phase!r}{nearest(phase, cfg.order)}")
    chosen = [phase] if phase else list(cfg.order)
    for name in chosen:
        cascades.complete(cfg.phases[name])
        try:
            unread.check(cfg.phases[name])
            phases.check(cfg.phases[name])
            loop.check(cfg.phases[name])
            optim.check(cfg.phases[name].optim)
            compute_dtype(cfg.phases[name].precision)
            profiles.parse(cfg.phases[name].profile)
            boards.known(cfg.phases[name].reports)
        except ValueError as error:
            raise InputError(f"phase {name}: {error}") from None
    if cfg.get("quick_compile"):
        jax.config.update("jax_disable_most_optimizations", True)
    cache.enable()  # a resumed phase then starts without compiling again
    first = cfg.phases[chosen[0]].mesh.values() if chosen else ()
    where = meshes.counted(math.prod(first))
    processes.say(f"recipe {short}: {', '.join(chosen) or 'packing'}, on {where}")
    for name in chosen if dry else ():
        plans.show(root, short, cfg, name)
    if dry:
        return 0
    for name in chosen:
        done = recipes.run_phase(root, short, cfg, name, resume)
        processes.say(
            f"phase {name} {done.state}: {done.minutes:.1f} minutes, about {done.tflop:.3g} TFLOP"
        )
        if done.state == "interrupted":
            processes.say("run the same command again to go on from the checkpoint")
            return 130
    if "pack" in cfg and phase is None and processes.first():
        finish(root, short, cfg)
    processes.wait("the recipe is done")
    return 0


def finish(root: Path, short: str, cfg: Any) -> None:
    """Packs the cascade folder of a recipe, and makes a video with it where one is asked for."""
    from mv2_jax.train.pack import pack

    begun = dict.fromkeys(cfg.phases[name].get("cascade", "") for name in cfg.order)
    cfg.pack.sources = (*(folder for folder in begun if folder), *cfg.pack.sources)
    packed = pack(root, short, cfg.pack, cfg.order)
    size = sum(part.size for part in packed.components.values()) / 1e6
    print(f"packed {len(packed.components)} components, {size:.1f} MB: {packed.folder}", flush=True)
    if cfg.pack.prompt:
        from mv2_jax.infer import generate
        from mv2_jax.infer.request import Request

        asked = Request(prompts=(cfg.pack.prompt,), weights=packed.folder)
        generate.command(asked, str(root / short / "video.mp4"))
