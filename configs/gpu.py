"""What turns a world's recipe into phases for one GPU of 80 GB.

Worlds are rendered within the step, many steps are one call, networks compute in bfloat16, and a
phase ends after MINUTES by the clock, compiling included, in half-precision weights from which the
next goes on: a card that is at hand for ten minutes is enough. A phase that is cut goes on from its
checkpoint of the minute before.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

MINUTES = 7.0  # of training; making, packing and a last sheet of samples take the eighth
CALLS = 16  # steps of one call


def phase(made: ConfigDict, batch: int, **settings: Any) -> ConfigDict:
    """A phase of a world's recipe, for one GPU.

    Args:
        made: the phase as the world has it.
        batch: samples a step.
        settings: further ones, which merge into those of the same name.
    """
    made.update(
        batch=batch,
        steps=1_600_000,  # the clock ends it
        max_minutes=MINUTES,
        precision="bf16",
        steps_per_call=CALLS,
        log_every=10 * CALLS,
        checkpoint_minutes=1.0,
        sample_minutes=0.0,
    )
    made.optim.clock = "time"
    with made.unlocked():
        if "count" in made.data:
            del made.data["count"], made.data["shard"]
            made.data.within = True
        if made.data.get("image_every"):
            made.data.image_every = 0
            del made.data["image_batch"]
        for name, value in settings.items():
            if isinstance(made.get(name), ConfigDict):
                made[name].update(value)
            else:
                made[name] = value
    return made
