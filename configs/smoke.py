"""The whole way in minutes: every phase of the toybox for a few steps, on networks of nothing.

`mv2 train smoke` shows that training, the chain of phases and packing work; what it trains cannot
draw. Networks have the shapes of the toybox's, with fewer channels and smaller pictures.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from mv2_jax.config import to_dict
from mv2_jax.configs.toybox import i2v, sizes, t2i, v2v, vae
from mv2_jax.train.phase import packing, recipe

VAE = replace(sizes.VAE, latent_channels=8, channels=(16, 16), norm_groups=4)
TEXT = replace(sizes.TEXT, width=32, layers=1, heads=2, mlp_width=32)
VISION = replace(sizes.VISION, image_size=16, width=32, layers=1, heads=2, mlp_width=32)
PROJECTION = replace(
    sizes.PROJECTION, in_width=32, width=32, out_width=32, tokens=2, heads=2, head_width=16
)
SPATIAL = replace(
    sizes.SPATIAL,
    in_channels=8,
    out_channels=8,
    channels=(16, 32),
    transformers=(0, 1),
    heads=(2, 2),
    context_width=32,
    norm_groups=4,
)
MOTION = replace(sizes.MOTION, heads=2, norm_groups=4)
VIDEO = replace(SPATIAL, motion=MOTION, image_tokens=True)
CONTROL = replace(sizes.CONTROL, unet=SPATIAL, condition_channels=(8, 16))

NETWORKS = {
    "vae": VAE,
    "text": TEXT,
    "vision": VISION,
    "projection": PROJECTION,
    "control": CONTROL,
    "t2i": replace(sizes.T2I, unet=SPATIAL, size=(128, 128), steps=4),
    "i2v": replace(sizes.I2V, unet=VIDEO, size=(96, 96), frames=4, steps=4),
    "v2v": replace(sizes.V2V, unet=VIDEO, size=(128, 128), frames=4, steps=4),
}


def _small(phase: ConfigDict) -> ConfigDict:
    """A toybox phase made small and short; it begins from the chain and from nothing else."""
    phase.begin = ConfigDict()
    phase.update(steps=4, max_minutes=0.0, batch=4, log_every=2)
    phase.optim.update(warmup=2, clock="steps")
    for name in phase.model:
        phase.model[name] = ConfigDict(to_dict(NETWORKS[name]))
    if "count" in phase.data:
        phase.data.update(count=16, shard=8)
    if phase.data.get("image_every"):
        phase.data.update(image_every=2, image_batch=4)
    if "sizes" in phase.data:
        phase.data.sizes = (128, 96)
    if "views" in phase.data:
        phase.data.views = ("128/64",)
    if "sample" in phase:
        phase.sample.steps = 2
    return phase


def get_config() -> ConfigDict:
    phases = {name: own.get_config().phases[phase] for name, (own, phase) in _PHASES.items()}
    trial = packing(name="smoke", prompt="a red ball bouncing over a meadow")
    made = recipe(trial, **{name: _small(phase) for name, phase in phases.items()})
    made.quick_compile = True
    return made


_PHASES = {
    "vae": (vae, "vae"),
    "t2i": (t2i, "t2i"),
    "i2v": (i2v, "words"),
    "v2v": (v2v, "v2v"),
}
