"""What a stage is told beside its noisy latents: one file a condition.

A condition is a frozen dataclass (static under jit) with the members of `Condition`. What it is
told at sampling, and what "nothing" is instead, `encode` says once a chain; `feed` then adds it to
what the backbone gets, at every step. The stage stacks the rows that a guidance rule wants
(`stages.stage.condition`) and drops conditions in training, each by its own "nothing".

A condition of one's own is such a dataclass, named as `module:Class` in a stage's config
(`config.StageConfig.conditions`); docs/extending.md walks through one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax

from mv2_jax.nn.transformer import Context
from mv2_jax.sharding import Rules

if TYPE_CHECKING:
    from mv2_jax.stages.stage import Config

Params = dict[str, Any]
Inputs = Mapping[str, Any]
"""Raw inputs by name, as a user or a training batch gives them: "ids" and "negative" (token ids),
"image" [B, H, W, 3] in [-1, 1], its scaled latent "reference" [B, h, w, C], scales, and whatever
other conditions need. In training the batch's "latent" [B, T, h, w, C] is there too."""


@runtime_checkable
class Condition(Protocol):
    """One thing that a stage is told.

    It may also have `configs` (`HasConfigs`), `of_frames` (`ByFrame`), and `takes`, names of raw
    inputs that it can do without. Inputs that no condition reads are refused.
    """

    @property
    def name(self) -> str:
        """Under which it is known, and its own number or input on the command line."""
        ...

    @property
    def role(self) -> str:
        """With what a guidance rule withholds it: one of `guidance.ROLES`."""
        ...

    @property
    def drop(self) -> str:
        """The name of the chance that drops it in training; those of one name are dropped
        together."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the raw inputs without which it cannot be encoded."""
        ...

    @property
    def trees(self) -> tuple[str, ...]:
        """Names of the parameter trees that it reads; those of `init` are its own."""
        ...

    @property
    def rules(self) -> Rules:
        """(pattern, axes) rows for parameters that `sharding.RULES` does not know."""
        ...

    @property
    def at_steps(self) -> tuple[str, ...]:
        """Which of its trees `feed` reads."""
        ...

    @property
    def sharded(self) -> bool:
        """Whether `feed` knows of shards (`models.backbone.denoise`), as this package's layers do;
        where one part of a stage does not, each device has whole clips and parameters."""
        ...

    def blank(self, cfg: Config, batch: int) -> dict[str, Any]:
        """Raw inputs of zeros, of the shapes that a chain of `batch` samples has."""
        ...

    def init(
        self,
        cfg: Config,
        key: jax.Array,
        x: jax.Array,
        t: jax.Array,
        context: Context,
        held: Params,
    ) -> Params:
        """Fresh trees. x, t and context are zeros as in `feed`, of one sample; `held` are trees
        that are given, to begin as a copy of one."""
        ...

    def encode(self, params: Params, cfg: Config, inputs: Inputs) -> tuple[Any, Any]:
        """(conditioning, nothing): two trees of arrays of equal shapes, leading axis B."""
        ...

    def feed(
        self,
        params: Params,
        cfg: Config,
        conditioning: Any,
        x: jax.Array,
        t: jax.Array,
        context: Context,
    ) -> Context:
        """`context` with this condition in it.

        Args:
            conditioning: of `encode`, leading axis N, rows of guidance times samples.
            x, t: noisy latents [N, T, h, w, C] and timesteps [N].
            context: what the conditions before this one made of it.
        """
        ...


@runtime_checkable
class ByFrame(Protocol):
    """A condition that may tell each frame something else."""

    @property
    def name(self) -> str: ...

    def of_frames(self, conditioning: Any, frames: jax.Array) -> Any:
        """What `encode` made for a clip, for some of its frames: their numbers [W], traced."""
        ...


@runtime_checkable
class HasConfigs(Protocol):
    """A condition or backbone of which something else stands in cascade folders than itself."""

    def configs(self) -> dict[str, Any]:
        """{tree name: its config}."""
        ...


class Named(Protocol):
    """Configs by name: a mapping, or what looks them up (`components.Configs`)."""

    def __getitem__(self, name: str, /) -> Any: ...


class Usual:
    """What most conditions of one's own have in common: nothing is needed, and one tree, which
    every device of a mesh has whole."""

    name: str
    role = "text"
    needs: tuple[str, ...] = ()
    at_steps: tuple[str, ...] = ()
    sharded = True

    @property
    def drop(self) -> str:
        return f"drop_{self.name}"

    @property
    def trees(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def rules(self) -> Rules:
        return ((f"/{self.name}/", ()),)

    def read(self, words: list[str]) -> Any:
        """The raw input of a batch from what a user wrote, one text a sample: numbers [B].

        Raises:
            ValueError: the words do not say one.
        """
        import numpy as np

        return np.asarray([float(word) for word in words], np.float32)
