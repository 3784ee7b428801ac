"""Training state on disk (Orbax): saved now and then, resumed from the newest."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax

from mv2_jax.errors import InputError
from mv2_jax.train.state import State


class Checkpoints:
    """The checkpoints of one phase, the newest two kept.

    Beside the state each holds a small dict of numbers (`elapsed` seconds of the phase so far).
    """

    def __init__(self, folder: Path) -> None:
        import orbax.checkpoint as ocp

        # Orbax narrates every save; our own progress lines would drown.
        logging.getLogger("absl").setLevel(logging.WARNING)
        self._ocp = ocp
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2, create=True, enable_async_checkpointing=False
            ),
        )

    def newest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, notes: dict[str, Any]) -> None:
        """Writes one; a checkpoint of the same step stays as it is."""
        if self.newest() == step:
            return
        args = self._ocp.args
        notes = {**notes, "layout": _layout(state)}
        self._manager.save(
            step, args=args.Composite(state=args.StandardSave(state), notes=args.JsonSave(notes))
        )
        self._manager.wait_until_finished()

    def restore(self, like: State) -> tuple[State, dict[str, Any]]:
        """The newest state, laid out (types, shapes, shardings) like `like`, and its notes.

        `like` is given up for it: two states may not fit the devices.

        Raises:
            InputError: the checkpoint is of another network than `like`.
        """
        args, step = self._ocp.args, self.newest()
        notes = self._manager.restore(step, args=args.Composite(notes=args.JsonRestore()))["notes"]
        wanted = _layout(like)
        stored = notes.get("layout", wanted)
        odd = [name for name in {**wanted, **stored} if stored.get(name) != wanted.get(name)]
        if odd:
            raise InputError(
                f"the checkpoint of step {step} in {self._manager.directory} does not fit this "
                f"configuration: {odd[0]} is {stored.get(odd[0], 'absent')} there and "
                f"{wanted.get(odd[0], 'absent')} here; start afresh with --fresh"
            )
        shapes = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, like)
        jax.tree.map(lambda leaf: leaf.delete(), like)
        kept = self._manager.restore(step, args=args.Composite(state=args.StandardRestore(shapes)))
        return kept["state"], notes

    def close(self) -> None:
        self._manager.close()


def _layout(state: State) -> dict[str, str]:
    """{where a leaf is: its type and shape}."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
