"""Distillation of T2I, I2V or V2V to few steps: guidance and steps at once, from the stage itself.

The teacher is the stage as it is in `begin` (a cascade's, converted ones too), guided by its own
rule and numbers; the student begins as its copy and runs one row. What is trained are the trees of
`train`, whole, or a LoRA of them. What comes of it says in its weights how it is sampled, so that a
cascade that it is packed into makes videos in few steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mv2_jax import bundle, config
from mv2_jax import numbers as sets
from mv2_jax import params as trees
from mv2_jax.diffusion import distillation, guidance
from mv2_jax.diffusion import keys as named
from mv2_jax.diffusion.distillation import Distillation
from mv2_jax.diffusion.points import Point
from mv2_jax.lookup import one_of
from mv2_jax.stages import stage as stages
from mv2_jax.train import unread
from mv2_jax.train.task import Batch, Component, Params, Task, require
from mv2_jax.train.tasks.t2i import PictureTask
from mv2_jax.train.video import VideoTask

UNGUIDED = {"guidance": 1.0, "guidance_rescale": 0.0, "guidance_low": 0.0, "guidance_high": 0.0}


def make(cfg: Any, begin: Mapping[str, Component], folder: Path) -> Task:
    """The task of the stage `cfg.stage`, over all that it is made of.

    `cfg.teacher` are numbers that guide the teacher (`mv2_jax.numbers`: "guidance" and so on); the
    others are those that `cfg.cascade` likes best. `cfg.distil`: `Distillation`'s. `cfg.student`:
    the "steps" that the student's weights say they take, of a whole chain.

    Raises:
        InputError: an unknown stage or number, or a component that is missing.
    """
    stage = one_of(cfg.stage, sets.DIFFUSION, "stage")
    require(begin, "vae", "text_encoder")
    whole = _with_a_loss(cfg)
    if stage == "t2i":
        student = Student(cfg, PictureTask(whole, begin, folder))
        require(begin, *student.net.trees)
    else:
        base = VideoTask(stage, whole, begin, folder)
        student = Student(cfg, base)
        require(begin, *(base._stored(n) for n in student.net.trees if not base.given(n)))
    student.check()
    return student.task()


def _with_a_loss(cfg: Any) -> ConfigDict:
    """The settings with a stage's own loss, which is not computed."""
    made = ConfigDict(cfg).copy_and_resolve_references()
    with made.unlocked():
        made.loss = ConfigDict({"shape": {"class": "LossConfig"}})
    return made


class Student:
    """A stage's task, taught by the stage as it begins."""

    def __init__(self, cfg: Any, base: PictureTask | VideoTask) -> None:
        self.cfg, self.base, self.name = cfg, base, cfg.stage
        own = bundle.read(cfg.cascade).numbers if cfg.get("cascade") else sets.usual()
        numbers = sets.changed(cfg.stage, own[cfg.stage], {**cfg.teacher}, "teacher")
        self.scales = guidance.of(numbers)
        self.how = Distillation(**cfg.distil)
        schedule = base.net.stage.schedule
        self.how.grid(schedule)  # refuses what cannot be
        sampled = {"sampler": self.how.form, "steps": cfg.student.steps}
        self.net = base.net = stages.with_stage(base.net, **sampled)
        self.rule = self.net.rule.least(self.scales)

    def check(self) -> None:
        """Refuses settings that nothing reads, the stage's own loss among them. Raises InputError,
        which names the first."""
        source = self.base.source
        reads = {name for name in self.base.reads() if not name.startswith("loss.")}
        reads |= {"stage", "teacher", "distil", "student"}
        unread.refuse(self.cfg, reads, {}, source, "stream" if source.streams else "clips")

    def loss(self, params: Params, frozen: Params, batch: Batch, key: jax.Array):
        """`distillation.loss` of a batch of clips, or of pictures."""
        net, batch = self.net, self.base.ready(frozen, batch)
        latent = batch["latent"]
        latent = latent[:, None] if latent.ndim == 4 else latent
        # A SparseCtrl is shown the first frame's latent, as in the stage's own training.
        inputs = {"reference": latent[:, 0], **batch, "latent": latent, **stages.in_rows(batch)}
        teacher = {**frozen, **frozen["teacher"]}
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
        teacher = jax.tree.map(partial(np.asarray, dtype=np.float32), task.init(named.seed(0)))
        own = {"image_guidance": 1.0} if self.name != "t2i" else {}
        return dataclasses.replace(
            task,
            frozen={**task.frozen, "teacher": trees.cast(teacher, jnp.float32)},
            loss=self.loss,
            notes={
                **task.notes,
                "stages": {self.name: config.to_dict(self.net.stage)},
                "numbers": {self.name: {**UNGUIDED, **own, "steps": self.net.stage.steps}},
            },
        )
