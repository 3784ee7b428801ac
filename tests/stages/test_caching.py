"""Steps that run a part of the network: beside DeepCache's rule in torch, over diffusers' UNet."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from quick import quick
from torch_chains import ddim, drift

from mv2_jax import config
from mv2_jax.convert.tables import unet as table
from mv2_jax.diffusion import guidance, keys
from mv2_jax.errors import InputError
from mv2_jax.models import backbone as backbones
from mv2_jax.models.unet import UNet
from mv2_jax.nn.transformer import Context
from mv2_jax.stages import caching, chain, t2i
from mv2_jax.stages import stage as stages
from mv2_jax.stages.conditions.text import Prompt

STEPS, INTERVAL, SCALE = 7, 3, 4.0
PLANE = (5, 7)  # odd on every level
CFG = config.UNetConfig(
    channels=(8, 16, 16),
    layers_per_block=2,
    transformers=(1, 1, 0),
    heads=(2, 2, 2),
    context_width=8,
    norm_groups=4,
)
ADVANCE = quick(chain.advance, "cfg", "rule", "steps", "k", "branch", "bounded")
QUICK = {
    chain.advance: ADVANCE,
    chain.again: quick(chain.again, "cfg", "steps"),
    caching.begin: quick(caching.begin, "cfg", "rule", "branch"),
}


class Cached:
    """DeepCache's rule, put around the modules of a diffusers UNet: each is numbered by its block
    and its place in it; on the steps between whole ones, those past the branch answer with what
    they said on the last whole one."""

    def __init__(self, unet, interval, branch):
        self.interval, self.step, self.last = interval, -1, None
        per = unet.config.layers_per_block + 1
        self.block, self.place = divmod(branch, per)
        count = len(unet.up_blocks)
        for number, block in enumerate(unet.down_blocks):
            self._wrap(block, self._down(number, 0))
            for kind in ("resnets", "attentions"):
                for place, module in enumerate(getattr(block, kind, [])):
                    self._wrap(module, self._down(number, place))
            for module in block.downsamplers or []:
                self._wrap(module, self._down(number, per - 1))
        self._wrap(unet.mid_block, True)
        for number, block in enumerate(unet.up_blocks):
            number = count - 1 - number
            self._wrap(block, self._up(number, 0))
            for kind in ("resnets", "attentions"):
                for place, module in enumerate(getattr(block, kind, [])):
                    self._wrap(module, self._up(number, per - 1 - place))
            for module in block.upsamplers or []:
                self._wrap(module, self._up(number, 0))
        whole = unet.forward

        def forward(sample, timestep, *args, **given):
            if self.last is None or float(timestep) != self.last:
                self.step, self.last = self.step + 1, float(timestep)
            return whole(sample, timestep, *args, **given)

        unet.forward = forward

    def _down(self, block, place):
        return block > self.block or (block == self.block and place >= self.place)

    def _up(self, block, place):
        return block > self.block or (block == self.block and place > self.place)

    def _wrap(self, module, beyond):
        if not beyond:
            return
        run, said = module.forward, []

        def forward(*args, **given):
            if self.step % self.interval == 0:
                said[:] = [run(*args, **given)]
            return said[0]

        module.forward = forward


@pytest.fixture(scope="module")
def networks():
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)

    def make():
        torch.manual_seed(0)
        down = ["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"]
        return diffusers.UNet2DConditionModel(
            block_out_channels=CFG.channels,
            down_block_types=down,
            up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2,
            layers_per_block=2,
            attention_head_dim=CFG.heads,
            cross_attention_dim=CFG.context_width,
            norm_num_groups=CFG.norm_groups,
        ).eval()

    x, t, context = jnp.zeros((1, 1, 8, 8, 4)), jnp.zeros(1), Context(jnp.zeros((1, 3, 8)))
    target = jax.eval_shape(lambda: UNet(CFG).init(jax.random.key(0), x, t, context)["params"])
    from mv2_jax.convert.engine import convert

    state = {name: leaf.numpy() for name, leaf in make().state_dict().items()}
    return make, convert(state, table.rules(CFG), target)


def case(networks):
    stage = config.StageConfig(
        CFG, config.ScheduleConfig(), (PLANE[0] * 8, PLANE[1] * 8), steps=STEPS, rule="text"
    )
    networks_of = {**tiny.NETWORKS, "text_encoder": tiny.TEXT}
    cfg = stages.build("t2i", stage, networks_of, 8)
    rng = np.random.default_rng(1)
    text = rng.standard_normal((2, 2, 3, 8)).astype(np.float32)  # [R, B, L, C]
    state = t2i.start(keys.seeds([3, 4]), cfg=cfg, steps=STEPS)
    return cfg, {"spatial": networks[1]}, {"text": Prompt(jnp.asarray(text))}, text, state


def theirs(networks, text, x, schedule, branch, interval=INTERVAL, active=lambda k: True):
    """Latents after each step."""
    import torch

    unet, scheduler, states = networks[0](), ddim(schedule), []
    Cached(unet, interval, branch)
    scheduler.set_timesteps(STEPS)
    x, rows = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(text).flatten(0, 1)
    with torch.no_grad():
        for t in scheduler.timesteps:
            away, told = unet(torch.cat([x, x]), t, rows).sample.chunk(2)
            x = scheduler.step(away + SCALE * (told - away), t, x).prev_sample
            states.append(x.permute(0, 2, 3, 1).numpy())
    return states


@pytest.mark.parametrize(
    "branch",
    [
        3,
        *(pytest.param(b, marks=pytest.mark.slow) for b in (0, 6)),
        *(pytest.param(b, marks=pytest.mark.long) for b in (1, 2, 4, 8)),
    ],
)
def test_a_chain_goes_as_by_deepcaches_rule(networks, branch):
    cfg, tree, given, text, state = case(networks)
    scales, rule, mine = guidance.make(SCALE), cfg.rule, []
    expected = theirs(networks, text, np.array(state.x[:, 0]), cfg.stage.schedule, branch)
    state = caching.begin(state, cfg=cfg, rule=rule, branch=branch)
    static = {"cfg": cfg, "rule": rule, "steps": STEPS, "k": 1, "branch": branch}
    for _ in range(STEPS):
        state = ADVANCE(tree, given, scales, state, np.int32(INTERVAL), **static)
        mine.append(np.asarray(state.x[:, 0]))
    assert drift(mine, expected) < 2e-6  # measured: 5.5e-7
    if branch == 3:  # and it matters
        first = np.array(t2i.start(keys.seeds([3, 4]), cfg=cfg, steps=STEPS).x[:, 0])
        plain = theirs(networks, text, first, cfg.stage.schedule, branch, interval=1)
        assert drift(mine[-1:], plain[-1:]) > 1e-3


@pytest.fixture(scope="module")
def four():
    made = tiny.make()
    for name in ("i2v", "v2v"):
        made = made.with_stage(name, steps=5, frames=5, overlap=1)  # in windows of three
    return made


def begun(four, stage, **changes):
    rng = np.random.default_rng(0)
    given = [rng.uniform(-1, 1, (2, 48, 48, 3)), rng.uniform(-1, 1, (2, 5, 32, 32, 3))]
    given = given[: ("t2i", "i2v", "v2v").index(stage)]
    made = four.chain(stage, ["a red ball", "a cube"], keys.seeds([1, 2]), changes, *given)
    return dataclasses.replace(made, run=quickly)


def quickly(function, *args, **static):
    return QUICK[function](*args, **static)


def test_every_interval_is_one_program_and_parts_are_the_whole(four):
    """With motion, pictures, a ControlNet, guidance rows and windows."""
    whole = np.asarray(begun(four, "i2v").end().x)
    own = np.asarray(begun(four, "i2v", cache_interval=1).end().x)
    np.testing.assert_array_equal(whole, own)
    chain_of = begun(four, "i2v", cache_interval=5)
    assert chain_of.branch == 0
    once = chain_of.end(at_once=None)
    before = ADVANCE._cache_size()
    every = dataclasses.replace(chain_of, interval=1).end(at_once=None)
    assert ADVANCE._cache_size() == before
    np.testing.assert_allclose(every.x, whole, atol=2e-6)
    parts = np.asarray(chain_of.end(at_once=1).x)
    np.testing.assert_allclose(parts, once.x, atol=2e-6)
    assert np.abs(parts - whole).max() > 1e-3


@pytest.mark.slow
def test_windows_keep_their_own(four):
    """Two windows side by side are two clips."""
    rng = np.random.default_rng(2)
    chain_of = begun(four.with_stage("i2v", frames=6, overlap=0), "i2v", cache_interval=2)
    x = jnp.asarray(rng.standard_normal(chain_of.state.x.shape), jnp.float32)
    both = dataclasses.replace(chain_of, state=chain_of.state._replace(x=x)).end().x
    for half in (slice(0, 3), slice(3, 6)):
        state = chain_of.state._replace(x=x[:, half])
        part = dataclasses.replace(chain_of, state=state).end().x
        np.testing.assert_allclose(part, both[:, half], atol=2e-6)


@pytest.mark.parametrize("interval", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_rows_outside_of_guidances_interval_are_not_run(four, interval, monkeypatch):
    own, seen = {"guidance": 3.0, "cache_interval": interval}, []
    k = chain.program(four.picture.stage, 6)[1]
    k = k.sigma / np.maximum(k.alpha, 1e-6)
    limits = {"guidance_low": float(k[4]) * 0.99, "guidance_high": float(k[1]) * 1.01}
    inner = backbones.denoise

    def denoise(network, params, x, *rest, **how):
        jax.debug.callback(lambda: seen.append(x.shape[0]), ordered=True)
        return inner(network, params, x, *rest, **how)

    monkeypatch.setattr(backbones, "denoise", denoise)
    within = begun(four, "t2i", steps=6, **own, **limits)
    got = within.end(at_once=None).x
    jax.effects_barrier()
    assert seen == [1, 2, 2, 2, 2, 1]
    monkeypatch.undo()
    if interval == 1:  # as with all rows run
        want = dataclasses.replace(within, bounded=False).end().x
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(got - begun(four, "t2i", steps=6, **own).end().x).max() > 1e-3


@pytest.mark.slow
def test_restarts_and_partial_chains_begin_with_a_whole_step(four):
    late = begun(four, "v2v", strength=0.7, cache_interval=4)  # three steps
    assert int(late.state.index) == 2
    assert int(late.end().kept.age) == 3
    again = begun(four, "i2v", free_init=1, cache_interval=2).end()
    assert int(again.kept.age) == 5


def test_refusals(four):
    moving = four.with_stage("i2v", context="looped")
    with pytest.raises(InputError, match="i2v cache_interval: windows that move from step to step"):
        begun(moving, "i2v", cache_interval=2)
    with pytest.raises(InputError, match="i2v cache_branch is 2; its network has 0 to 1"):
        begun(four, "i2v", cache_interval=2, cache_branch=2)
    own = SimpleNamespace(name="i2v", backbone=None, stage=SimpleNamespace(unet=0, context=""))
    assert caching.check(own, 1, 0) is None
    with pytest.raises(InputError, match="i2v cache_interval: int keeps nothing from step to step"):
        caching.check(own, 2, 0)
