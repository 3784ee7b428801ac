"""Training state on disk (Orbax): saved now and then, resumed from the newest."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax

from mv2_jax import files
from mv2_jax.errors import InputError
from mv2_jax.train import processes
from mv2_jax.train.state import State

DIGESTS = "_DIGESTS.json"


class Checkpoints:
    """The checkpoints of one phase, the newest two kept.

    Beside the state each holds a small dict of numbers (`elapsed` seconds of the phase so far), and
    the SHA-256 of its files: what is damaged is passed over for the one before.
    """

    def __init__(self, folder: Path) -> None:
        import orbax.checkpoint as ocp

        # Orbax narrates every save; our own progress lines would drown.
        logging.getLogger("absl").setLevel(logging.WARNING)
        self._ocp = ocp
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                create=True,
                cleanup_tmp_directories=True,  # of runs that were killed as they saved
                enable_async_checkpointing=False,
            ),
        )

    def newest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, notes: dict[str, Any]) -> None:
        """Writes one; a checkpoint of the same step stays as it is.

        Raises:
            InputError: it cannot be written, as on a full disk; those before are as they were.
        """
        if self.newest() == step:
            return
        args = self._ocp.args
        notes = {**notes, "layout": _layout(state)}
        try:
            self._manager.save(
                step,
                args=args.Composite(state=args.StandardSave(state), notes=args.JsonSave(notes)),
            )
            self._manager.wait_until_finished()
            processes.wait(f"the checkpoint of step {step} is whole")
            if processes.first():
                self._seal(step)
        except (OSError, ValueError) as error:
            kept = [one for one in self._manager.all_steps() if one != step]
            held = f"that of step {max(kept)} is the last good one" if kept else "there is none yet"
            raise InputError(
                f"the checkpoint of step {step} cannot be written to {self._manager.directory} "
                f"({_reason(error)}); {held}: make room there and run the same command again"
            ) from None

    def restore(self, like: State) -> tuple[State, dict[str, Any]]:
        """The newest state that is whole, laid out (types, shapes, shardings) like `like`, and its
        notes. Damaged ones are named and removed.

        `like` is given up for it: two states may not fit the devices.

        Raises:
            InputError: the checkpoint is of another network than `like`, or all are damaged.
        """
        shapes = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, like)
        layout = _layout(like)
        directory = self._manager.directory
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                self._check(step)
                notes = self._notes(step)
                self._fits(step, notes, layout)
                jax.tree.map(lambda leaf: leaf.is_deleted() or leaf.delete(), like)
                return self._state(step, shapes), notes
            except InputError:
                raise
            except Exception as error:  # whatever Orbax makes of files that are not what they were
                processes.say(f"the checkpoint of step {step} is damaged: {_reason(error)}")
            processes.wait(f"all have found the checkpoint of step {step} damaged")
            self._manager.delete(step)
        raise InputError(f"every checkpoint in {directory} is damaged; start afresh with --fresh")

    def _notes(self, step: int) -> dict[str, Any]:
        args = self._ocp.args
        held = self._manager.restore(step, args=args.Composite(notes=args.JsonRestore()))["notes"]
        if not {"elapsed", "flop"} <= {*held}:
            raise ValueError("its notes are not what was written")
        return held

    def _state(self, step: int, shapes: Any) -> State:
        args = self._ocp.args
        kept = self._manager.restore(step, args=args.Composite(state=args.StandardRestore(shapes)))
        return jax.block_until_ready(kept["state"])

    def _fits(self, step: int, notes: dict[str, Any], wanted: dict[str, str]) -> None:
        stored = notes.get("layout", wanted)
        odd = [name for name in {**wanted, **stored} if stored.get(name) != wanted.get(name)]
        if odd:
            raise InputError(
                f"the checkpoint of step {step} in {self._manager.directory} does not fit this "
                f"configuration: {odd[0]} is {stored.get(odd[0], 'absent')} there and "
                f"{wanted.get(odd[0], 'absent')} here; start afresh with --fresh"
            )

    def _folder(self, step: int) -> Path:
        return Path(self._manager.directory) / str(step)

    def _seal(self, step: int) -> None:
        """Writes down the digests of a checkpoint's files, in it."""
        folder = self._folder(step)
        with files.whole(folder / DIGESTS) as scratch:
            scratch.write_text(json.dumps(_digests(folder), indent=1) + "\n")

    def _check(self, step: int) -> None:
        """Compares a checkpoint's files with their digests, where it has any: older versions wrote
        none, nor does a run that is killed just then.

        Raises:
            ValueError: they differ; the message names the first that does.
        """
        folder = self._folder(step)
        if not (folder / DIGESTS).is_file():
            return
        sealed, found = json.loads((folder / DIGESTS).read_text()), _digests(folder)
        for name in sealed:
            if found.get(name) != sealed[name]:
                raise ValueError(f"{name} is {'gone' if name not in found else 'not what it was'}")

    def close(self) -> None:
        self._manager.close()


def _digests(folder: Path) -> dict[str, str]:
    """{path inside: SHA-256} of a checkpoint's files."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in paths}


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
