"""Every setting of a recipe is read, or refused by name."""

import copy
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from mv2_jax import cli
from mv2_jax.config import GANVFIConfig, to_dict
from mv2_jax.configs.toybox import dpo as dpo_recipe
from mv2_jax.configs.toybox import i2v as i2v_recipe
from mv2_jax.configs.toybox import t2i as t2i_recipe
from mv2_jax.configs.toybox import v2v as v2v_recipe
from mv2_jax.configs.toybox import vae as vae_recipe
from mv2_jax.configs.toybox import vfi as vfi_recipe
from mv2_jax.diffusion import keys, losses, process
from mv2_jax.diffusion.losses import LossConfig
from mv2_jax.diffusion.names import SAMPLINGS, WEIGHTINGS
from mv2_jax.errors import InputError
from mv2_jax.stages import stage as stages
from mv2_jax.train import loop, optim, overrides, unread
from mv2_jax.train.phase import phase
from mv2_jax.train.task import Component
from mv2_jax.train.tasks import i2v, t2i, v2v, vae, vfi
from mv2_jax.train.toybox import dpo

from . import regression

INIT = stages.init
ZERO_SNR = replace(tiny.SCHEDULE, zero_terminal_snr=True)
GAN = GANVFIConfig(
    width=16, multipliers=(1,), codes=8, norm_groups=4, window=4, head_width=16, taps=3,
    head_widths=(8,), head_slope=0.1, patch_size=4, half_heads=False, time_width=8,
)  # fmt: skip
NETWORKS = {
    "vae": tiny.VAE,
    "text": tiny.TEXT,
    "vision": tiny.VISION,
    "projection": tiny.PROJECTION,
    "control": tiny.CONTROL,
    "t2i": tiny.PICTURE,
    "i2v": tiny.KEYFRAMES,
    "v2v": tiny.REFINED,
    "vfi": GAN,
}


def zeros(shapes):
    return jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)


@pytest.fixture(autouse=True)
def nothing(monkeypatch):
    """No network is initialised: its trees are zeros."""

    def init(net, key, held=None):
        return zeros(jax.eval_shape(lambda k: INIT(net, k), key))

    monkeypatch.setattr("mv2_jax.train.video.stages.init", init)


@pytest.fixture(scope="module")
def begin():
    four = tiny.make()
    configs = {
        "vae": tiny.VAE, "text_encoder": tiny.TEXT, "spatial": tiny.SPATIAL,
        "motion_i2v": tiny.MOTION, "image_encoder": tiny.VISION, "image_attn": tiny.PROJECTION,
        "control": tiny.CONTROL,
    }  # fmt: skip
    return {name: Component(four.params[name], config) for name, config in configs.items()}


def small(cfg, **changes):
    """A shipped phase over networks of nothing."""
    cfg = copy.deepcopy(cfg)
    for name in cfg.model:
        cfg.model[name] = ConfigDict(to_dict(NETWORKS[name]))
    cfg.update(batch=2, **changes)
    return cfg


def of_t2i():
    cfg = small(t2i_recipe.get_config().phases.t2i)
    cfg.data.update(sizes=(48,), count=4, shard=4)
    return cfg


def of_video(task, shipped):
    cfg = small(shipped)
    cfg.data.update(count=4, shard=4, decoded=0.5)
    if cfg.data.get("image_every"):
        cfg.data.update(image_every=2, image_batch=2)
    cfg.task = task
    return cfg


def of_vae(critic=True):
    cfg = small(vae_recipe.get_config().phases.vae)
    cfg.data.views = ("32/16",)
    with cfg.unlocked():
        if critic:
            cfg.critic = ConfigDict({"width": 8, "layers": 1})
            cfg.loss.update(critic=0.1, critic_from=3)
    return cfg


def of_vfi():
    cfg = small(vfi_recipe.get_config().phases.vfi)
    cfg.critic.update(width=8, layers=1)
    cfg.data.update(count=4, shard=4, size=48, side=32, among=1)
    return cfg


def of_dpo():
    cfg = small(dpo_recipe.get_config().phases.pictures)
    cfg.data.update(count=4, shard=4, chunk=2)
    return cfg


TASKS = {
    "t2i": (t2i, of_t2i, ("vae",)),
    "i2v": (
        i2v, lambda: of_video("i2v", i2v_recipe.get_config().phases.i2v),
        ("vae", "text_encoder", "spatial"),
    ),
    "v2v": (
        v2v, lambda: of_video("v2v", v2v_recipe.get_config().phases.v2v),
        ("vae", "text_encoder", "spatial", "motion_i2v", "image_encoder", "image_attn", "control"),
    ),
    "vae": (vae, of_vae, ()),
    "vfi": (vfi, of_vfi, ("vae",)),
    "dpo": (dpo, of_dpo, ("vae", "text_encoder", "spatial")),
}  # fmt: skip


class Reads:
    """Notes which settings of a phase are looked at."""

    def __init__(self, cfg, monkeypatch):
        self.seen, self.places = set(), {}
        self._walk(cfg, "")
        of = ConfigDict.__getitem__

        def noted(node, key):
            value = of(node, key)
            if id(node) in self.places and not isinstance(value, ConfigDict):
                self.seen.add(self.places[id(node)] + key)
            return value

        monkeypatch.setattr(ConfigDict, "__getitem__", noted)

    def _walk(self, node, prefix):
        self.places[id(node)] = prefix
        for key in node:
            if isinstance(node[key], ConfigDict):
                self._walk(node[key], f"{prefix}{key}.")


def claims(module, cfg, given, folder, monkeypatch):
    """(task, the settings that it claims to read)."""
    found = []
    with monkeypatch.context() as patch:
        patch.setattr(unread, "refuse", lambda cfg, reads, *rest, **more: found.append({*reads}))
        task = module.make(cfg, given, folder)
    return task, found[0]


def noise(kind, params, net, *rest, **more):
    return jnp.zeros((16 if kind == "t2i" else 6, *net.latent_shape))


SLOW = ("i2v", "v2v", "vae", "vfi")


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=pytest.mark.slow) if each in SLOW else each for each in TASKS]
)
def test_a_task_looks_at_all_that_it_says_it_reads(name, begin, tmp_path, monkeypatch):
    """And what it does not say is refused: see below."""
    module, made, needs = TASKS[name]
    cfg, given = made(), {part: begin[part] for part in needs}
    halves = {n: np.zeros((2, 6, 6, 4), np.float16) for n in ("better", "worse")}
    halves["margin"] = np.ones(2, np.float32)
    monkeypatch.setattr(dpo.Pictures, "candidates", lambda self, numbers, words: halves)
    for kind in ("t2i", "i2v", "v2v"):
        monkeypatch.setattr(f"mv2_jax.stages.{kind}.sample", partial(noise, kind))
    reads = Reads(cfg, monkeypatch)
    task, claimed = claims(module, cfg, given, tmp_path / "phase", monkeypatch)
    batches, key = task.batches(0, 0), jax.random.key(0)
    weights = jax.eval_shape(task.init, key)
    for _ in range(2):  # clips, and pictures
        jax.eval_shape(task.loss, weights, task.frozen, next(batches), key)
    if task.sample is not None:
        task.sample(zeros(weights), task.frozen, key)
    leaves = [
        path for path in overrides.leaves(cfg) if path.split(".")[0] not in ("begin", "model")
    ]
    of_source = {path for path in leaves if path.startswith(("data.motions", "data.gap"))}
    seen = reads.seen | {"sample.guidance", "sample.steps", "data.candidates"}  # of noise above
    mine = {path for path in leaves if not {*unread._branches(path)}.isdisjoint(claimed)}
    assert len(mine) >= 6 and mine - of_source <= seen
    usual = {path for path in leaves if unread._same(cfg.get(path, ()), unread._USUAL.get(path))}
    assert {*leaves} <= mine | of_source | usual | unread._EVERY | {"data.size"}


UNKNOWN = {
    "optim.warmpu": (3, "reads no setting 'optim.warmpu'; did you mean 'optim.warmup'"),
    "trian": (("a",), "reads no setting 'trian'"),
    "sample.strenght": (0.5, "reads no setting 'sample"),
    "loss.drop_size": (0.1, "reads no setting 'loss.drop_size'"),
    "data.conut": (4, "reads no setting 'data.conut'"),
    "critik": ({"width": 8}, "reads no setting 'critik"),
    "model.texts": ({"width": 8}, "reads no setting 'model.texts'"),
    "begin.jugde": ("x", "reads no setting 'begin.jugde'"),
    "optim.decay_from": (0.5, "optim.decay_from has no effect: optim.schedule is 'cosine'"),
    "size": ((64, 64), "size has no effect: "),
}


def with_one(cfg, path, value):
    cfg, value = copy.deepcopy(cfg), ConfigDict(value) if isinstance(value, dict) else value
    if path == "optim.decay_from":
        cfg.optim.schedule = "cosine"
    *branches, last = path.split(".")
    with cfg.unlocked():
        node = cfg
        for branch in branches:
            if branch not in node:
                node[branch] = ConfigDict()
            node = node[branch]
        node[last] = value
    return cfg


@pytest.mark.parametrize("name", TASKS)
def test_what_it_does_not_read_is_refused(name, begin, tmp_path):
    module, made, needs = TASKS[name]
    given = {part: begin[part] for part in needs}
    for path, (value, said) in UNKNOWN.items():
        with pytest.raises(InputError, match=said):
            module.make(with_one(made(), path, value), given, tmp_path / "phase")
    for path in ("optim.warmpu", "optim.decay_from"):  # of any task, one's own too
        with pytest.raises(InputError, match=UNKNOWN[path][1]):
            unread.check(with_one(made(), path, UNKNOWN[path][0]))


def test_the_loop_reads_what_every_phase_has(tmp_path, monkeypatch):
    cfg = regression.config(
        steps=2, sample_minutes=0.001, checkpoint_minutes=0.001, max_minutes=5.0
    )
    cfg.optim.update(schedule="warmup_stable_decay", clock="time")
    reads = Reads(cfg, monkeypatch)
    loop.check(cfg)
    loop.run(regression.task(), cfg, tmp_path / "run")
    elsewhere = {"task", "chain", "cascade", "steps", "name", "frozen_dtype"}  # of `recipe`
    elsewhere |= {"lora.rank", "lora.alpha", "lora.match"}
    assert unread._EVERY <= reads.seen | elsewhere


OFF = {
    "optim.decay_from": (0.5, {"optim.schedule": "warmup_stable_decay"}),
    "optim.final": (0.5, {"optim.schedule": "cosine"}),
    "optim.clock": ("time", {"optim.schedule": "cosine"}),
    "optim.eps": (1e-6, {"optim.name": "adamw"}),
    "ema.warmup": (False, {"ema.decay": 0.9}),
}


@pytest.mark.parametrize("path", OFF)
def test_what_another_setting_switches_off_has_an_effect_once_it_is_on(path):
    value, on = OFF[path]
    off = {"optim.schedule": "constant", "optim.name": "muon", "ema.decay": 0.0}

    def numbers(changes):
        cfg = phase("regression", max_minutes=1.0)
        for name, told in changes.items():
            branch, _, last = name.partition(".")
            cfg[branch][last] = told
        rates = [optim.rate(cfg.optim, 10**4, share) for share in (0.2, 0.6, 0.9)]
        step, params = optim.transformation(cfg.optim), {"kernel": jnp.ones((2, 3))}
        slope = {"kernel": jnp.full((2, 3), 1e-7)}
        moved = step.update(slope, step.init(params), params)[0]["kernel"]
        return cfg, (rates, np.asarray(moved).tolist())

    plain, changed = numbers(off), numbers({**off, path: value})
    assert plain[1] == changed[1]
    with pytest.raises(InputError, match=f"{path} has no effect: "):
        unread.check(changed[0])
    unread.check(numbers({**off, **on, path: value})[0])
    if path in ("optim.decay_from", "optim.final", "optim.eps"):
        assert numbers({**off, **on})[1] != numbers({**off, **on, path: value})[1]


def test_fields_of_a_loss_change_it_or_are_refused():
    """Each field, of every sampling and of every weighting, on noise."""
    x0, own = keys.normal(keys.seeds(range(4)), (3, 3, 2)), keys.seeds(range(1, 5))
    flow = process.Flow()

    def value(cfg):
        def model(x, t):
            return 0.3 * x + 1e-3 * t[:, None, None, None]

        with jax.disable_jit():
            return float(losses.diffusion_loss(model, x0, own, flow, cfg)[0])

    for sampling in SAMPLINGS:
        for weighting in WEIGHTINGS:
            cfg = LossConfig(sampling=sampling, weighting=weighting)
            free = losses.unread(cfg, flow)
            others = {"location": 0.7, "scale": 0.6, "shift": 1.7, "gamma": 0.9}
            same = {
                n for n, told in others.items() if value(replace(cfg, **{n: told})) == value(cfg)
            }
            assert same == free, (sampling, weighting)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"loss.shape.gamma": 3.0}, "loss.shape.gamma has no effect: neither sampling 'uniform'"),
        ({"loss.shape.noise_offset": 0.1, "schedule": ZERO_SNR}, "noise_offset does not go with"),
        ({"sample.image_guidance": 2.0, "rule": "public"}, "no scale for the picture; 'apart'"),
        ({"sample.image_guidance": 2.0, "rule": "none"}, "sample.guidance has no effect: "),
        ({"loss.control_scale": 0.5, "conditions": ("text", "image")}, "no setting 'begin.control"),
        ({"data.image_batch": 5}, "data.image_batch has no effect: data.image_every is 0"),
        ({"remat": False, "remat_policy": "dots"}, "remat_policy has no effect: remat is False"),
    ],
)  # fmt: skip
def test_what_a_stage_does_not_hear_is_refused(changes, said, begin, tmp_path):
    cfg = of_video("v2v", v2v_recipe.get_config().phases.v2v)
    given = {part: begin[part] for part in TASKS["v2v"][2]}
    v2v.make(cfg, given, tmp_path / "phase")
    own = ("rule", "conditions", "schedule")
    stage = {name: changes.pop(name) for name in own if name in changes}
    cfg.model.v2v = ConfigDict(to_dict(replace(tiny.REFINED, **stage)))
    for path, value in changes.items():
        cfg = with_one(cfg, path, value)
    with pytest.raises(InputError, match=said):
        v2v.make(cfg, given, tmp_path / "phase")


def test_a_networks_config_that_its_weights_overrule_is_named(begin, tmp_path, capsys):
    """It is there for weights that begin fresh, and so it is no mistake."""
    cfg = of_video("v2v", v2v_recipe.get_config().phases.v2v)
    with cfg.unlocked():
        cfg.model.vision = ConfigDict(to_dict(replace(tiny.VISION, width=16)))
    v2v.make(cfg, {part: begin[part] for part in TASKS["v2v"][2]}, tmp_path / "phase")
    said = capsys.readouterr().out
    assert said == "model.vision.width (16) has no effect: training begins from weights of 8\n"


def test_the_command_refuses_it_in_one_line(tmp_path, capsys):
    words = ["train", "toybox/judge", "--out", str(tmp_path), "--set", "optim.decay_from=0.5"]
    assert cli.main(words) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith("judge: optim.decay_from has no effect: optim.schedule is 'cosine'")
    assert not list(tmp_path.iterdir())
