"""Distillation of T2I, I2V or V2V to few steps: guidance and steps at once, from the stage itself.

The teacher is the stage as it is in `begin` (a cascade's, converted ones too), guided by its own
rule and numbers; the student begins as its copy and runs one row. What is trained are the trees of
`train`, whole, or a LoRA of them. What comes of it says in its weights how it is sampled, so that a
cascade that it is packed into makes videos in few steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mv2_jax import bundle, config
from mv2_jax import numbers as sets
from mv2_jax import params as trees
from mv2_jax.diffusion import distillation, guidance
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion.distillation import Distillation
from mv2_jax.diffusion.points import Point
from mv2_jax.errors import InputError
from mv2_jax.lookup import one_of
from mv2_jax.stages import chain
from mv2_jax.stages import idle as unheard
from mv2_jax.stages import stage as stages
from mv2_jax.train import unread
from mv2_jax.train.task import Batch, Component, Params, Task, require
from mv2_jax.train.tasks.t2i import PictureTask
from mv2_jax.train.video import VideoTask

UNGUIDED = {"guidance": 1.0, "guidance_rescale": 0.0, "guidance_low": 0.0, "guidance_high": 0.0}
GUIDES = (*UNGUIDED, "image_guidance")  # the numbers of a teacher


def make(cfg: Any, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task of the stage `cfg.stage`, over all that it is made of.

    `cfg.teacher` are numbers that guide the teacher (`mv2_jax.numbers`: "guidance" and so on); the
    others are those that `cfg.cascade` likes best. `cfg.distil`: `Distillation`'s. `cfg.student`:
    the "steps" that the student's weights say they take, of a whole chain. Its sheets are drawn so;
    V2V's are of `distil.part` of the chain.

    Raises:
        InputError: an unknown stage or number, a component that is missing, or a setting that
            changes nothing.
    """
    stage = one_of(cfg.stage, sets.DIFFUSION, "stage")
    require(begin, "vae", "text_encoder")
    whole = _as_the_stages_own(cfg)
    if stage == "t2i":
        student = Student(cfg, PictureTask(whole, begin, folder))
        require(begin, *student.net.trees)
    else:
        base = VideoTask(stage, whole, begin, folder)
        student = Student(cfg, base)
        require(begin, *(base._stored(n) for n in student.net.trees if not base.given(n)))
    return student.task()


def _as_the_stages_own(cfg: Any) -> ConfigDict:
    """The settings of the stage's own task: with a loss, which is not computed, and with sheets
    that are sampled as the student is."""
    made = ConfigDict(cfg).copy_and_resolve_references()
    numbers = {"guidance": 1.0, "image_guidance": 1.0, "steps": None, **cfg.student}
    with made.unlocked():
        made.loss = ConfigDict({"shape": {"class": "LossConfig"}})
        made.sample = ConfigDict({**numbers, "strength": _how(cfg).part})
    return made


def _how(cfg: Any) -> Distillation:
    known = [field.name for field in dataclasses.fields(Distillation)]
    for name in cfg.distil:
        one_of(name, known, "setting", "distil")
    return Distillation(**cfg.distil)


class Student:
    """A stage's task, taught by the stage as it begins."""

    def __init__(self, cfg: Any, base: PictureTask | VideoTask) -> None:
        self.cfg, self.base, self.name = cfg, base, cfg.stage
        own = bundle.read(cfg.cascade).numbers if cfg.get("cascade") else sets.usual()
        numbers = sets.changed(cfg.stage, own[cfg.stage], {**cfg.teacher}, "teacher")
        self.scales = guidance.of(numbers)
        self._check()
        self.how = _how(cfg)
        schedule = base.net.stage.schedule
        self.how.grid(schedule)  # refuses what cannot be
        told = sets.changed(cfg.stage, own[cfg.stage], {**cfg.student}, "student")
        steps = told.steps or base.net.stage.steps
        self.net = base.net = stages.with_stage(base.net, sampler=self.how.form, steps=steps)
        try:
            chain.program(self.net.stage, steps)
        except ValueError as error:
            raise InputError(f"student.steps: {error}") from None
        self.rule = self.net.rule.least(self.scales)

    def _check(self) -> None:
        """Refuses settings that nothing reads, the stage's own loss and sheets among them. Raises
        InputError, which names the first."""
        source = self.base.source
        reads = {name for name in self.base.reads() if not name.startswith(("loss.", "sample."))}
        reads |= {"stage", "distil", "student.steps", *(f"teacher.{name}" for name in GUIDES)}
        idle = {f"teacher.{name}": why for name, why in unheard.numbers(self.base.net).items()}
        use = "stream" if source.streams else "clips"
        unread.refuse(self.cfg, reads, idle, source, use)

    def loss(self, params: Params, frozen: Params, batch: Batch, key: jax.Array):
        """`distillation.loss` of a batch of clips, or of pictures."""
        net, batch = self.net, self.base.ready(frozen, batch)
        latent = batch["latent"]
        latent = latent[:, None] if latent.ndim == 4 else latent
        # A SparseCtrl is shown the first frame's latent, as in the stage's own training.
        inputs = {"reference": latent[:, 0], **batch, "latent": latent, **stages.in_rows(batch)}
        teacher = {**frozen, **frozen.get("teacher", {})}
        told = stages.condition(teacher, inputs, cfg=net, rule=self.rule)
        learner = {**frozen, **params}
        alone = stages.condition(learner, inputs, cfg=net, rule=guidance.NONE)
        alone = jax.tree.map(lambda leaf: leaf[0], alone)

        def guided(x: jax.Array, point: Point) -> jax.Array:
            outputs = stages.predict(teacher, net, *self.rule.repeat(x, point), told)
            return self.rule.combine(outputs, self.scales, point.k)

        def one_row(x: jax.Array, point: Point) -> jax.Array:
            return stages.predict_one(learner, net, x, point.t, alone)

        keys = named.per_sample(key, latent.shape[0])
        given = (one_row, guided, latent, keys, net.stage.schedule, self.how)
        return distillation.loss(*given)

    def task(self) -> Task:
        """The loop's view."""
        task = self.base.task()
        taught = {}
        if not self.cfg.lora.rank:  # beside a LoRA the trees lie frozen as they begin
            taught = {"teacher": trees.cast(task.init(named.seed(0)), np.float32)}
        own = {"image_guidance": 1.0} if self.name != "t2i" else {}
        return dataclasses.replace(
            task,
            frozen={**task.frozen, **taught},
            loss=self.loss,
            error_at=None,  # the student does not answer with its stage's target
            held_out=None,
            notes={
                **task.notes,
                "stages": {self.name: config.to_dict(self.net.stage)},
                "numbers": {self.name: {**UNGUIDED, **own, "steps": self.net.stage.steps}},
            },
        )
