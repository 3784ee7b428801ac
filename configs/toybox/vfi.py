"""The toybox's GAN interpolator, small enough for a quarter of an hour on two CPU cores."""

from ml_collections import ConfigDict

from mv2_jax.bundle import SHIPPED
from mv2_jax.config import GANVFIConfig, to_dict
from mv2_jax.train.phase import phase, recipe

# Planes are at most a quarter as wide as the frame, where CPUs convolve well, and EDSC has 3 x 3
# taps: reads scattered over a frame are what a CPU is slowest at.
VFI = GANVFIConfig(
    width=64,
    multipliers=(1, 1),
    z_channels=4,
    codes=512,
    code_width=4,
    norm_groups=16,
    window=8,
    head_width=32,
    taps=3,
    head_widths=(32,),
    head_slope=0.1,
    patch_size=4,
    half_heads=False,
    time_width=64,
)


def get_config() -> ConfigDict:
    return recipe(
        vfi=phase(
            "vfi",
            begin={"vae": str(SHIPPED)},
            steps=20_000,
            batch=4,
            max_minutes=15.0,
            model={"vfi": to_dict(VFI)},
            critic={"width": 32, "layers": 2},
            # Frames as far apart as the cascade's eight keyframes are, and nearer. Of `among`
            # samples the one is taken where the light model errs most: in many it is right.
            data={
                "count": 2048,
                "shard": 128,
                "size": 256,
                "side": 128,
                "gap": (0.05, 0.15),
                "among": 4,
            },
            loss={
                "features": 0.2,
                "codebook": 1.0,
                "commitment": 0.25,
                "critic": 0.1,
                "critic_from": 300,
            },
            optim={
                "lr": 1e-3,
                "warmup": 50,
                "clock": "time",
                "b1": 0.5,
                "b2": 0.9,
                "weight_decay": 0.0,
            },
            ema={"decay": 0.995},
        )
    )
