"""The GAN interpolator at the size of VQ-FIGAN, trained on a folder of one's own videos.

`mv2 train vfi --set data.root=FOLDER`; every file below FOLDER that PyAV reads is learned from.
"""

from ml_collections import ConfigDict

from mv2_jax.bundle import SHIPPED
from mv2_jax.config import GANVFIConfig, to_dict
from mv2_jax.train.phase import phase, recipe


def get_config() -> ConfigDict:
    return recipe(
        vfi=phase(
            "vfi",
            begin={"vae": str(SHIPPED)},
            steps=100_000,
            batch=8,
            model={"vfi": to_dict(GANVFIConfig(head_slope=0.1))},
            critic={"width": 64, "layers": 3},
            # `gap`: how many frames apart the two given ones are, at least and at most. `among`:
            # of so many draws the one is kept where the light model errs most. A sample takes
            # 0.8 MB of disk and of memory, 3.2 GB for as many as these.
            data={"root": "", "count": 4096, "shard": 64, "side": 256, "gap": (2, 6), "among": 2},
            # The critic's part is VQ-FIGAN's; so is the step from which it takes part.
            loss={
                "features": 1.0,
                "codebook": 1.0,
                "commitment": 0.25,
                "critic": 0.8,
                "critic_from": 10_000,
            },
            optim={"lr": 1e-4, "b1": 0.5, "b2": 0.9, "weight_decay": 0.0},
        )
    )
