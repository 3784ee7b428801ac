"""The training loss of a small video UNet has torch's gradients, rematerialised or not."""

import jax
import numpy as np
import pytest

from mv2_jax.config import MotionConfig, ScheduleConfig, UNetConfig
from mv2_jax.convert.tables import motion
from mv2_jax.convert.tables import unet as unet_table
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion import process
from mv2_jax.diffusion.losses import diffusion_loss, positions
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context
from mv2_jax.params import flatten

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SCHEDULE = ScheduleConfig(kind="linear")
MOTION = MotionConfig(heads=2, mid_block=True, norm_groups=8, norm_scope="clip")
CFG = UNetConfig(
    channels=(16, 32),
    layers_per_block=1,
    transformers=(1, 0),
    heads=(2, 2),
    context_width=20,
    norm_groups=8,
    motion=MOTION,
)
BATCH, FRAMES, PLANE = 3, 2, (5, 6)


@pytest.fixture(scope="module")
def theirs(parity):
    """diffusers' random video UNet with the gradients of its training loss, the loss, the batch."""
    unet = diffusers.UNetMotionModel(
        block_out_channels=CFG.channels,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        layers_per_block=CFG.layers_per_block,
        num_attention_heads=CFG.heads,
        cross_attention_dim=CFG.context_width,
        norm_num_groups=CFG.norm_groups,
        motion_num_attention_heads=MOTION.heads,
        motion_max_seq_length=MOTION.max_frames,
    )
    parity.randomise(unet)
    latent = parity.noise(BATCH, FRAMES, *PLANE, 4)
    text = parity.noise(BATCH, 7, CFG.context_width, seed=2)
    keys = named.seeds(range(BATCH))
    # The same chance on both sides: what timesteps and noise these keys mean to our loss.
    t = torch.from_numpy(np.array(process.of(SCHEDULE).at(positions(keys)).t)).long()
    eps = named.normal(named.fold(keys, "noise"), latent.shape[1:])
    eps = torch.from_numpy(np.array(eps)).permute(0, 4, 1, 2, 3)
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="linear", beta_start=SCHEDULE.beta_start, beta_end=SCHEDULE.beta_end
    )
    noisy = scheduler.add_noise(torch.from_numpy(latent).permute(0, 4, 1, 2, 3), eps, t)
    states = torch.from_numpy(text).repeat_interleave(FRAMES, 0)
    loss = torch.nn.functional.mse_loss(unet(noisy, t, states).sample, eps)
    loss.backward()
    return unet, loss.item(), (latent, text, keys)


@pytest.mark.parametrize(
    "remat", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["remat", "plain"]
)
def test_gradients(parity, theirs, remat):
    unet, expected, (latent, text, keys) = theirs
    ours = UNet(CFG, remat=remat)
    target = parity.shapes(ours, latent, np.zeros(BATCH, np.float32), Context(text))
    table = [*unet_table.rules(CFG), *motion.diffusers()]

    def loss(params):
        def model(x, t):
            return ours.apply({"params": params}, x, t, Context(text))

        return diffusion_loss(model, latent, keys, SCHEDULE)[0]

    params = parity.convert(unet.state_dict(), table, target)
    value, gradients = parity.jit(jax.value_and_grad(loss))(params)
    assert abs(value - expected) < 1e-6 * expected
    given = dict(unet.named_parameters())
    # Positions are buffers there, without gradients; here they are parameters, left out below.
    wanted = {
        name: torch.zeros_like(tensor) if name not in given else given[name].grad
        for name, tensor in unet.state_dict().items()
    }
    wanted = flatten(parity.convert(wanted, table, target))
    gradients = flatten(gradients)
    compared = [name for name in gradients if not name.endswith("/pe")]
    assert len(compared) == len(given)
    largest = max(np.abs(wanted[name]).max() for name in compared)
    worst = {}
    for name in compared:
        # A leaf whose gradient all but cancels is measured against the largest one's thousandth.
        size = max(np.abs(wanted[name]).max(), 1e-3 * largest)
        worst[name] = np.abs(gradients[name] - wanted[name]).max() / size
    name = max(worst, key=worst.get)
    print(f"worst gradient {name}: {worst[name]:.1e}")
    assert worst[name] < 2e-5  # measured: 4.7e-6
