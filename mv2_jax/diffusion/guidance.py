"""Guidance: several evaluations of a network, each told more or less, made into one.

A `Rule` says which rows of the network are run and what is withheld from each. Rows are an axis of
their own: inputs and outputs are [R, B, ...]. They stand in the order of growing condition, and the
last one is told everything. Conditions are withheld by their role: "text", "image" (tokens of a
picture) or "control" (its layout).

- "none": one row; nothing is guided.
- "text": away from the negative prompt, with picture and control on both sides (classifier-free
  guidance, arXiv 2207.12598).
- "public": away from the negative prompt and a picture of zeros, with the control on both sides;
  so do the public pipelines for AnimateDiff with IP-Adapter and ControlNet.
- "apart": nothing; picture and control; those and the text, with a scale for each step
  (InstructPix2Pix, arXiv 2211.09800, eq. 3).

Rows are structure (they are the size of the batch); every number is traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from mv2_jax import lookup, numbers
from mv2_jax.diffusion.names import RULES
from mv2_jax.diffusion.prediction import divide, expand
from mv2_jax.diffusion.samplers import Point

ROLES = ("text", "image", "control")


class Guidance(NamedTuple):
    """How strongly to guide; a tree of float32 arrays, `[]` or (but for the interval) `[B]`.

    Make it with `make`, so that every call has the same types and compiles once.

    text: scale of the text (of all that the rule withholds, in two rows); 1 guides nothing.
    image: scale of the picture, for rules that have one for it.
    rescale: phi of arXiv 2305.08891, sec. 3.4: how far the guided output's spread is brought
        back to that of the conditioned one; 0 not, 1 wholly.
    low, high: guide only where low <= sigma / alpha <= high (arXiv 2404.07724); elsewhere the
        output is the conditioned one. A `high` of 0 sets no bound.
    """

    text: Array
    image: Array
    rescale: Array
    low: Array
    high: Array

    def active(self, k: float | Array) -> Array:
        """Whether to guide at noise k = sigma / alpha."""
        return (self.low <= k) & ((k <= self.high) | (self.high == 0))

    @property
    def bounded(self) -> bool:
        """Whether the interval has a bound; of numbers that are known, not traced."""
        return float(self.low) > 0 or float(self.high) != 0


_USUAL = numbers.Pictured()


def make(
    text: float | Array = _USUAL.guidance,
    image: float | Array = _USUAL.image_guidance,
    rescale: float | Array = _USUAL.guidance_rescale,
    low: float | Array = _USUAL.guidance_low,
    high: float | Array = _USUAL.guidance_high,
) -> Guidance:
    """A `Guidance` of float32 arrays; what is not given is as in `mv2_jax.numbers`."""
    return Guidance(*(jnp.asarray(v, jnp.float32) for v in (text, image, rescale, low, high)))


def of(own: numbers.Guided) -> Guidance:
    """A `Guidance` from a stage's numbers, a dataclass of `mv2_jax.numbers`.

    T2I has no scale for a picture, and takes the usual one, which no rule of its asks for.
    """
    image = getattr(own, "image_guidance", _USUAL.image_guidance)
    return make(own.guidance, image, own.guidance_rescale, own.guidance_low, own.guidance_high)


@dataclass(frozen=True)
class Rule:
    """Which rows are run, and how their outputs become one.

    For a rule of one's own, subclass it (frozen), override `mix` or `least`, and name an instance
    of it as `module:name` where a rule is wanted.

    withheld: the roles that each row is not told; the last row is told everything.
    scales: for each row but the first, the number of `Guidance` that weighs the step to it from
        the row before.

    Raises:
        ValueError: scales and rows that do not fit together, or a last row that lacks something.
    """

    withheld: tuple[tuple[str, ...], ...] = ((),)
    scales: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.scales) != len(self.withheld) - 1:
            raise ValueError(
                f"a rule of {len(self.withheld)} rows needs {len(self.withheld) - 1} scales, not "
                f"{len(self.scales)}"
            )
        if self.withheld[-1]:
            raise ValueError("the last row of a guidance rule is told everything")
        for name in self.scales:
            if name not in Guidance._fields:
                raise ValueError(
                    f"guidance has no number {name!r}{lookup.nearest(name, Guidance._fields)}"
                )

    @property
    def rows(self) -> int:
        """How many rows are run."""
        return len(self.withheld)

    def least(self, guidance: Guidance) -> Rule:
        """The rule with only the rows that these numbers need; `combine` makes the same of them.

        A row that weighs nothing is left out: at scales of 1 the last row is all. For numbers that
        are known before the program is chosen; `rescale` and the interval change nothing here.
        """
        scales = [1.0, *(float(getattr(guidance, name)) for name in self.scales), 0.0]
        last = self.rows - 1
        kept = [i for i in range(self.rows) if i == last or scales[i] != scales[i + 1]]
        return dataclasses.replace(
            self,
            withheld=tuple(self.withheld[i] for i in kept),
            scales=tuple(self.scales[i - 1] for i in kept[1:]),
        )

    def among(self, roles: Iterable[str]) -> Rule:
        """The rule for a stage whose conditions have these roles: rows that would then be told the
        same are run once, so that T2I's "apart" is "text"."""
        roles = tuple(roles)
        rows = [tuple(role for role in row if role in roles) for row in self.withheld]
        kept = [i for i in range(self.rows) if i == self.rows - 1 or rows[i] != rows[i + 1]]
        return dataclasses.replace(
            self,
            withheld=tuple(rows[i] for i in kept),
            scales=tuple(self.scales[i] for i in kept[:-1]),
        )

    def repeat(
        self, x: Float[Array, " B *shape"], point: Point
    ) -> tuple[Float[Array, "R B *shape"], Float[Array, "R B"]]:
        """What the network gets for samples `[B, ...]` at a point: x `[R, B, ...]`, t `[R, B]`."""
        rows = jnp.broadcast_to(x[None], (self.rows, *x.shape))
        return rows, jnp.broadcast_to(point.t, rows.shape[:2]).astype(jnp.float32)

    def mix(
        self, outputs: Float[Array, "R B *shape"], scales: tuple[Array, ...]
    ) -> Float[Array, " B *shape"]:
        """The guided output [B, ...] from the rows' [R, B, ...] and each step's scale."""
        guided = outputs[0]
        for scale, before, row in zip(scales, outputs, outputs[1:]):
            guided = guided + scale * (row - before)
        return guided

    def combine(
        self,
        outputs: Float[Array, "R B *shape"],
        guidance: Guidance,
        k: float | Array,
    ) -> Float[Array, " B *shape"]:
        """One output `[B, ...]` from the rows' `[R, B, ...]` at noise k = sigma / alpha,
        [] or `[B]`.

        Linear in the outputs with weights that sum to 1, so that it is the same whether they are
        eps, v or x0 (but for the rescale, which is of the outputs as they are, as in diffusers).

        Raises:
            ValueError: another number of rows than the rule's.
        """
        if outputs.shape[0] != self.rows:
            raise ValueError(f"{outputs.shape[0]} rows of outputs; this rule has {self.rows}")
        outputs = outputs.astype(jnp.float32)
        full, ndim = outputs[-1], outputs.ndim - 1
        if self.rows == 1:
            return full
        active = expand(guidance.active(k), ndim)
        scales = tuple(
            jnp.where(active, expand(getattr(guidance, name), ndim), 1.0) for name in self.scales
        )
        guided = self.mix(outputs, scales)
        axes = tuple(range(1, ndim))
        spread = divide(full.std(axes, keepdims=True), guided.std(axes, keepdims=True))
        phi = expand(guidance.rescale, ndim)
        rescaled = guided * (1.0 - phi + phi * spread)
        # `full` itself outside of the interval: the sums above only come near it.
        return jnp.where(active, rescaled, full)


NONE = Rule()
TEXT = Rule((("text",), ()), ("text",))
PUBLIC = Rule((("text", "image"), ()), ("text",))
APART = Rule((ROLES, ("text",), ()), ("image", "text"))


def rule(name: str) -> Rule:
    """The rule of a name: one of `names.RULES`, or anyone's `module:name`.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    return lookup.find(name, RULES, "guidance rule", fits=Rule, wants="a guidance.Rule")
