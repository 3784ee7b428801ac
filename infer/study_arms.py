"""The arms of `mv2 study training` and `preference`: trained where they are not yet, and put into
the cascade in place of its own parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mv2_jax import params, sharding
from mv2_jax.config import to_dict
from mv2_jax.infer.mechanisms import Variant

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle
    from mv2_jax.cascade import Cascade

RECIPES = {"training": "toybox/ablations", "preference": "toybox/dpo"}

Arms = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""{arm: {stage that it changes: {component: tree}}}."""


def train(which: str, bundle: Bundle, runs: Path, steps: int | None) -> Arms | None:
    """Trains the arms that are not done yet, over the parts of `bundle`; None where interrupted.

    Arms of other steps or settings, or over other weights, are no arms of this study: they are
    trained anew.

    Raises:
        InputError: what a recipe lacks, or a loss that is no longer finite.
    """
    from mv2_jax.train import recipe

    short, cfg = recipe.load(RECIPES[which])
    arms: dict[str, dict[str, dict[str, Any]]] = {}
    for arm in cfg.order:
        phase = cfg.phases[arm]
        # The parts that the arms share are the studied cascade's own.
        phase.begin = ConfigDict({name: str(bundle.folder) for name in phase.begin})
        phase.model = ConfigDict({name: to_dict(_config(bundle, name)) for name in phase.model})
        if steps is not None:
            phase.steps = steps
        done = recipe.run_phase(runs, short, cfg, arm, resume=True, afresh=True)
        print(f"arm {arm} {done.state}: {done.minutes:.1f} minutes", flush=True)
        if done.state == "interrupted":
            return None
        held = recipe.components_in(runs / short / arm / "weights")
        stage = "t2i" if "spatial" in held else "i2v"
        arms[arm] = {stage: {name: part.params for name, part in held.items()}}
    return arms


def _config(bundle: Bundle, name: str) -> Any:
    """What the studied cascade has for an entry of a recipe's `model`: arms are of its shapes."""
    if name in bundle.stages:
        return bundle.stages[name]
    named = {"vision": "image_encoder", "projection": "image_attn", "text": "text_encoder"}
    return bundle.components[named.get(name, name)].config


def variants(which: str) -> tuple[Variant, ...]:
    """What a study of trained arms compares; the first is what the others are compared with."""
    if which == "preference":
        return (
            Variant("as it was", "full"),
            Variant("pictures, DPO", "pictures", weights="pictures"),
            Variant("pictures, winners", "pictures", weights="pictures_winners"),
            Variant("clips, DPO", "clips", weights="clips"),
            Variant("clips, winners", "clips", weights="clips_winners"),
        )
    off = {
        "everything": (),
        "no_pictures": (),
        "no_tokens": (("i2v", "image_scale", 0.0),),
        "no_control": (("i2v", "control_scale", 0.0),),
        "no_reference": (("i2v", "image_scale", 0.0), ("i2v", "control_scale", 0.0)),
    }
    # V2V's modules were trained over other parts than the arms', so no arm has it.
    skip = frozenset({"v2v"})
    found = []
    for prior in (1.0, 0.0):
        for arm, changes in off.items():
            name = arm.replace("_", " ") + ("" if prior else ", no prior")
            changed = (*changes, ("i2v", "noise_prior", prior))
            found.append(Variant(name, "training", changed, skip, arm))
    return tuple(found)


def cascades(cascade: Cascade, arms: Arms) -> dict[str, dict[str, Any]]:
    """{arm: {stage: the cascade with the arm's parts}}, for `mechanisms.Bench`."""
    return {
        arm: {
            stage: cascade.with_params(
                **{
                    cascade.component(stage, name): sharding.lay_out(
                        params.cast(tree, cascade.dtype), cascade.programs.mesh
                    )
                    for name, tree in parts.items()
                }
            )
            for stage, parts in stages.items()
        }
        for arm, stages in arms.items()
    }


def digest(arms: Arms) -> dict[str, str]:
    """What the arms' weights are, for telling one study from another."""
    return {
        f"{arm}/{name}": params.digest(tree)
        for arm, stages in arms.items()
        for parts in stages.values()
        for name, tree in parts.items()
    }
