"""Training state on disk (Orbax): saved now and then, resumed from the newest that is whole."""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.train import processes
from mv2_jax.train.placement import near
from mv2_jax.train.state import State

DAMAGED = "damaged"  # the folder, among the checkpoints, of those that were passed over


class Checkpoints:
    """The checkpoints of one phase: the `last` newest, and the `best` by their loss.

    They are written while training goes on. Each holds, beside the state, a small dict of numbers
    (`elapsed` seconds of the phase so far) with checksums of both: what is damaged is passed over
    for the one before.
    """

    def __init__(self, folder: Path, last: int = 2, best: int = 0) -> None:
        import orbax.checkpoint as ocp

        # Orbax narrates every save, and prints what it raises besides.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._ocp = ocp
        policies = ocp.checkpoint_managers
        kept = policies.BestN(
            get_metric_fn=lambda metrics: -metrics["loss"],
            n=best,
            keep_checkpoints_without_metrics=False,
        )
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(last), kept]),
                create=True,
                cleanup_tmp_directories=True,  # of runs that were killed as they saved
            ),
        )
        self._writing: int | None = None
        self.good: int | None = self._manager.latest_step()  # the newest that is whole

    @property
    def folder(self) -> Any:
        """Where they lie, a path of etils."""
        return self._manager.directory

    def last_good(self) -> str:
        """Which checkpoint a run would go on from, in words."""
        if self.good is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is that of step {self.good}"

    def save(
        self, step: int, state: State, notes: dict[str, Any], loss: float | None = None
    ) -> None:
        """Begins to write one, once the one before is whole; one of the same step stays as it is.

        Args:
            loss: what the best is judged by; None: it is never the best.

        Raises:
            FloatingPointError: a number of the state is not finite; nothing is written.
            InputError: it cannot be written, or the one before could not, as on a full disk.
        """
        self.finish()
        if self.good == step:
            return
        sums = checksums(state)
        notes = {**notes, "layout": _layout(state), "sums": sums}
        args = self._ocp.args
        self._writing = step
        try:
            self._manager.save(
                step,
                args=args.Composite(
                    state=args.StandardSave(_kept(state)), notes=args.JsonSave(_sealed(notes))
                ),
                metrics=None if loss is None else {"loss": loss},
            )
        except Exception as error:
            raise self._unwritten(error) from None

    def finish(self) -> None:
        """Returns once what is being written is whole.

        Raises:
            InputError: it could not be written; those before are as they were.
        """
        if self._writing is None:
            return
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._unwritten(error) from None
        self.good, self._writing = self._writing, None

    def check(self) -> None:
        """Raises InputError where writing has failed; waits for nothing."""
        if self._writing is not None and not self._manager.is_saving_in_progress():
            self.finish()

    def _unwritten(self, error: Exception) -> InputError:
        step, self._writing = self._writing, None
        return InputError(
            f"the checkpoint of step {step} cannot be written to {self.folder} "
            f"({_reason(error)}); {self.last_good()}: make room there, or mount it again, and run "
            "the same command again"
        )

    def restore(self, like: State) -> tuple[State, dict[str, Any]]:
        """The newest state that is whole, laid out (types, shapes, shardings) like `like`, and its
        notes. Damaged ones are named, and set aside until the phase is done.

        `like` is given up for it: two states may not fit the devices.

        Raises:
            InputError: the checkpoint is of another network than `like`, or all are damaged.
        """
        shapes = _kept(jax.tree.map(self._ocp.utils.to_shape_dtype_struct, like))
        layout = _layout(like)
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                notes = self._notes(step)
                self._fits(step, notes, layout)
                jax.tree.map(lambda leaf: leaf.is_deleted() or leaf.delete(), like)
                state, why = self._state(step, shapes, notes), ""
            except (InputError, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise  # nothing is wrong with the files
            except Exception as error:  # whatever Orbax makes of files that are not what they were
                state, why = None, _reason(error)
            if processes.each(state is None).any():
                processes.say(f"the checkpoint of step {step} is damaged: {why or 'says another'}")
                damaged.append(step)
                continue
            self._set_aside(damaged)
            self.good = step
            return state, notes
        raise InputError(f"every checkpoint in {self.folder} is damaged; start afresh with --fresh")

    def _notes(self, step: int) -> dict[str, Any]:
        args = self._ocp.args
        held = self._manager.restore(step, args=args.Composite(notes=args.JsonRestore()))["notes"]
        if not {"elapsed", "flop"} <= {*held} or held != _sealed(held):
            raise ValueError("its notes are not what was written")
        return held

    def _state(self, step: int, shapes: Any, notes: dict[str, Any]) -> State:
        args = self._ocp.args
        kept = self._manager.restore(step, args=args.Composite(state=args.StandardRestore(shapes)))
        state = State(**jax.block_until_ready(kept["state"]))
        written = notes.get("sums", {})  # older versions wrote none
        found = checksums(state) if written else {}
        odd = [name for name in found if written.get(name) != found[name]]
        if odd:
            raise ValueError(f"{odd[0]} is not what was written")
        return state

    def _fits(self, step: int, notes: dict[str, Any], wanted: dict[str, str]) -> None:
        stored = notes.get("layout", wanted)
        odd = [name for name in {**wanted, **stored} if stored.get(name) != wanted.get(name)]
        if odd:
            raise InputError(
                f"the checkpoint of step {step} in {self.folder} does not fit this "
                f"configuration: {odd[0]} is {stored.get(odd[0], 'absent')} there and "
                f"{wanted.get(odd[0], 'absent')} here; start afresh with --fresh"
            )

    def _set_aside(self, steps: list[int]) -> None:
        folder = self.folder
        if steps and processes.first():
            (folder / DAMAGED).rmtree(missing_ok=True)
            (folder / DAMAGED).mkdir()
            for step in steps:
                (folder / str(step)).rename(folder / DAMAGED / str(step))
        if steps:
            processes.wait("damaged checkpoints are set aside")
            self._manager.reload()

    def close(self, done: bool = False) -> None:
        """Ends the writing; `done` says that the phase is: what was set aside goes."""
        try:
            self._manager.close()
        except Exception:
            if self._writing is None:  # told before
                return
            raise
        if done and processes.first():
            (self.folder / DAMAGED).rmtree(missing_ok=True)


def _kept(state: State) -> dict[str, Any]:
    """The state as Orbax gets it: as older versions, where no further average is kept."""
    held = state._asdict()
    return held if state.others else {n: part for n, part in held.items() if n != "others"}


def checksums(state: Any) -> dict[str, int]:
    """{where a leaf is: a sum over its bits and their places}, the same over any mesh.

    Two different leaves have the same sum by a chance of 2^-64; a single changed number is always
    noticed. It is worked out where the leaf lies.

    Raises:
        FloatingPointError: a number is not finite; the message names the leaf.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    told = jax.device_get([_sums(near(leaf)) for _, leaf in leaves])
    found = {}
    for (path, _), (one, two, odd) in zip(leaves, told):
        name = jax.tree_util.keystr(path)
        if odd:
            raise FloatingPointError(name.lstrip("."))
        found[name] = (int(one) << 32) + int(two)
    return found


@jax.jit
def _sums(leaf: jax.Array) -> jax.Array:
    """uint32 [3]: two sums, and whether any number is not finite."""
    leaf = jnp.asarray(leaf)
    odd = jnp.uint32(0)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        odd = jnp.any(~jnp.isfinite(leaf)).astype(jnp.uint32)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    size = min(leaf.dtype.itemsize, 4)
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * size}")).astype(jnp.uint32)
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(words.ndim)):  # no ravel: it would gather what is split
        step = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = step * np.uint32(stride % 2**32) + jnp.broadcast_to(place, words.shape)
        stride *= words.shape[axis]
    halves = (jnp.sum(_mixed(words + place * np.uint32(by)), dtype=jnp.uint32) for by in _ODD)
    return jnp.stack([*halves, odd])


_ODD = (2654435769, 3266489917)  # any odd numbers with many bits


def _mixed(x: jax.Array) -> jax.Array:
    """One-to-one on 32 bits; every bit of the result depends on every bit (MurmurHash3's end)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _sealed(notes: dict[str, Any]) -> dict[str, Any]:
    """The notes with a checksum of their own; as they are where they have none and no sums."""
    if "sums" not in notes:  # an older version's
        return notes
    rest = {name: value for name, value in notes.items() if name != "seal"}
    return {**rest, "seal": zlib.crc32(json.dumps(rest, sort_keys=True).encode())}


def _reason(error: BaseException) -> str:
    """An error's first line, cut: Orbax and TensorStore say much more."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 160 else f"{lines[0][:157]}..."


def _layout(state: State) -> dict[str, str]:
    """{where a leaf is: its type and shape}."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
