"""I2V of the toybox with and without each mechanism of its training, at equal small budgets.

Every arm begins from the video stages' own spatial weights and text encoder (T2I's knows things
upright alone, and cannot tell falling from bouncing), and takes as many steps of the same clips.
The noise prior has no arm: training does not know it (see `mv2_jax.diffusion.losses`), so the study
samples every arm with it and without.
"""

from ml_collections import ConfigDict

from mv2_jax.configs.toybox import i2v
from mv2_jax.train.phase import arms

# What each arm is without, as settings of its phase.
WITHOUT = {
    "everything": {},
    "no_pictures": {"data": {"image_every": 0}},  # clips alone, no joint image training
    "no_tokens": {"loss": {"image_scale": 0.0}},
    "no_control": {"loss": {"control_scale": 0.0}},
    "no_reference": {"loss": {"image_scale": 0.0, "control_scale": 0.0}},
}


def _arm(changes: dict[str, dict[str, float]]) -> ConfigDict:
    phase = i2v.get_config().phases.i2v
    phase.begin.update(text_encoder="toybox/i2v", spatial="toybox/i2v")
    phase.update(steps=1500, max_minutes=0.0, sample_minutes=0.0)
    phase.optim.clock = "steps"
    phase.data.update(count=4096, shard=256)
    phase.loss.update(image_scale=1.0, control_scale=1.0)
    for section, values in changes.items():
        phase[section].update(values)
    return phase


def get_config() -> ConfigDict:
    return arms(**{name: _arm(changes) for name, changes in WITHOUT.items()})
