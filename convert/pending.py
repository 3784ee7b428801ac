"""Networks on their way into a cascade folder, each from a source found and recognised.

A `PendingNetwork` says which of a source's tensors fill which tree by which table; its `pending`
is that tree, read, changed and written one tensor at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mv2_jax import params
from mv2_jax.config import UNetConfig
from mv2_jax.convert import engine, kinds, lora_layers, param_shapes
from mv2_jax.convert.checkpoint import SourceNetwork
from mv2_jax.convert.sources import spec
from mv2_jax.convert.tables import ip_attention
from mv2_jax.errors import InputError
from mv2_jax.tensorfile import Spec

# Where a text encoder keeps its table of tokens.
TOKENS = "embeddings/token_embedding/embedding"


class Rows(NamedTuple):
    """An embedding's vectors [n, C], the name that prompts call it by, and its file."""

    name: str
    path: str
    vectors: np.ndarray


@dataclass(frozen=True, eq=False)
class PendingNetwork:
    """One component: the tensors of `found`, by `table`, into a tree of `target`'s shapes.

    `changes` are what LoRAs add to its leaves; `loras` are their paths and weights, `notes` what of
    them was left out. `rows` go below a text encoder's table of tokens.
    """

    found: SourceNetwork
    target: params.Tree
    config: Any
    table: engine.Table
    changes: lora_layers.Changes = dataclasses.field(default_factory=dict)
    loras: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    rows: tuple[Rows, ...] = ()

    @functools.cached_property
    def stored(self) -> dict[str, Spec]:
        """Every leaf's shape, and the type that it has in the source.

        Raises:
            InputError: the source does not fit; the message names the misfits.
        """
        tensors = self.found.part.tensors
        try:
            specs = {name: spec(tensors, name) for name in tensors}
            stored = engine.stored(specs, self.table, self.target)
        except ValueError as error:
            raise InputError(f"{self.found.asked}: {self.found.part.title}: {error}") from None
        if self.rows:
            shape = (self.config.vocab_size, *stored[TOKENS].shape[1:])
            stored[TOKENS] = stored[TOKENS]._replace(shape=shape)
        return stored

    def pending(self, dtype: Any = None) -> params.Pending:
        """The tree, in `dtype` or (None) in the source's own types.

        Raises:
            InputError: as `stored`; and where it is made, numbers that are not finite or that
                `dtype` cannot hold.
        """
        specs = {
            name: Spec(known.shape, _kept(known.dtype, dtype))
            for name, known in self.stored.items()
        }
        return params.Pending(specs, lambda: self._leaves(specs))

    def _leaves(self, specs: Mapping[str, Spec]) -> Iterator[tuple[str, np.ndarray]]:
        pairs = engine.stream(self.found.part.tensors, self.table, self.target)
        try:
            for name, array in lora_layers.changed(pairs, self.changes):
                if name == TOKENS and self.rows:
                    more = [np.asarray(rows.vectors, np.float32) for rows in self.rows]
                    array = np.concatenate([np.asarray(array, np.float32), *more])
                with np.errstate(over="ignore"):  # the check below names the leaf
                    cast = array.astype(specs[name].dtype, copy=False)
                overflows = cast.dtype == np.float16 != array.dtype and np.isinf(cast).any()
                # What was not finite before, the stream reports at its end.
                if overflows and np.isfinite(array).all():
                    raise InputError(
                        f"{self.found.asked}: {name} has numbers that float16 cannot hold; "
                        "convert with --dtype bfloat16"
                    )
                yield name, cast
        except engine.ConversionError as error:
            raise InputError(f"{self.found.asked}: {error}") from None

    def with_changes(
        self, changes: lora_layers.Changes, path: str, weight: float, notes: tuple[str, ...] = ()
    ) -> PendingNetwork:
        """This network with one LoRA more."""
        both = {leaf: list(known) for leaf, known in self.changes.items()}
        for leaf, more in changes.items():
            both.setdefault(leaf, []).extend(more)
        loras, said = (*self.loras, (path, weight)), (*self.notes, *notes)
        return dataclasses.replace(self, changes=both, loras=loras, notes=said)

    def with_rows(self, rows: Rows) -> PendingNetwork:
        """This text encoder with one embedding more."""
        # 2 stands for the largest id, which is an embedding's now.
        end = self.found.part.config.vocab_size - 1 if self.config.eos_token_id == 2 else None
        size = self.config.vocab_size + len(rows.vectors)
        ended = {} if end is None else {"eos_token_id": end}
        config = dataclasses.replace(self.config, vocab_size=size, **ended)
        return dataclasses.replace(self, config=config, rows=(*self.rows, rows))


def _kept(stored: np.dtype, wanted: Any) -> np.dtype:
    """The type that a leaf gets: only floating-point numbers are cast."""
    eight = stored.name.startswith("float8")
    floating = stored.kind == "f" or stored.name == "bfloat16" or eight
    if wanted is None:
        # NumPy cannot read float8 from a file; float16 holds all of its numbers.
        return np.dtype(np.float16) if eight else stored
    return np.dtype(wanted) if floating else stored


def plain(
    found: SourceNetwork, built: Mapping[str, PendingNetwork] | None = None
) -> PendingNetwork:
    """A network by itself: an encoder, a VAE, a ControlNet or its like, a UNet.

    `built` are the networks so far, for those that are nothing without them (`kind.Kind.whole`).

    Raises:
        InputError: its settings contradict its tensors, or these the other networks'.
    """
    kind = kinds.get(found.part.kind)
    if kind.whole is not None:
        try:
            found = dataclasses.replace(found, part=kind.whole(found.part, built or {}))
        except InputError as error:
            raise InputError(f"{found.asked} ({found.part.title}): {error}") from None
    part, make = found.part, kind.target
    return PendingNetwork(found, _target(found, lambda: make(part.config)), part.config, part.table)


def motion(found: SourceNetwork, unet: UNetConfig) -> PendingNetwork:
    """Motion modules for a spatial UNet. Raises InputError as `plain`."""
    cfg = found.part.config
    whole = dataclasses.replace(unet, motion=cfg)
    target = _target(found, lambda: param_shapes.unet(whole)["motion"])
    return PendingNetwork(found, target, cfg, found.part.table)


def image_attention(found: SourceNetwork, unet: UNetConfig) -> PendingNetwork:
    """An IP-Adapter: its image projection, and its keys and values for a spatial UNet.

    Raises InputError as `plain`.
    """
    cfg = dataclasses.replace(unet, image_tokens=True)

    def make() -> params.Tree:
        projection = param_shapes.image_projection(found.part.config)
        return {"projection": projection, "unet": param_shapes.unet(cfg)["image_attn"]}

    table = [*found.part.table, *engine.under(ip_attention.rules(cfg), target="unet/")]
    return PendingNetwork(found, _target(found, make), found.part.config, table)


def check(name: str, built: Mapping[str, PendingNetwork]) -> None:
    """Raises InputError where a component does not fit the others."""
    fits = kinds.get(built[name].found.part.kind).fits
    if fits is not None:
        fits(name, built[name], built)


def _target(found: SourceNetwork, make: Callable[[], params.Tree]) -> params.Tree:
    """The tree that a config makes, or words on why it makes none."""
    try:
        return make()
    # What flax and jax raise of widths that do not divide and names that they do not know.
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{found.asked}: {found.part.title} cannot be so: {reason}") from None
