"""Where a phase's numbers and sheets go beside its own files: TensorBoard, Weights & Biases.

A board is a value: `make(folder, cfg, step)` returns one, `cfg` being the phase's settings,
`folder` its own and `step` where it begins or resumes. `reports` of a phase names those that it
has, words of `BOARDS` or `module:name`.
"""

from __future__ import annotations

import contextlib
import io
import math
import secrets
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.lookup import find
from mv2_jax.train import needs

BOARDS = {
    "tensorboard": "mv2_jax.train.boards:TensorBoard",
    "wandb": "mv2_jax.train.boards:WandB",
}


class Board(Protocol):
    """What takes numbers and sheets."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a line of the log."""

    def sheet(self, step: int, image: np.ndarray) -> None:
        """A sample sheet, uint8 [H, W, 3].

        A board may also have `clips(step, gif)`, which gets the bytes of a GIF of the clips."""

    def close(self) -> None:
        """The phase ends, finished or not."""


def known(names: Any) -> list[Any]:
    """What the names stand for.

    Raises:
        InputError: an unknown one, or its package is not installed.
    """
    wants = "a function make(folder, cfg, step)"
    for name, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        if name in names and not needs.there(package):
            raise InputError(f"reports: {name} needs {package}: pip install {package}")
    return [find(name, BOARDS, "report", fits=callable, wants=wants) for name in names]


def make(names: Any, folder: Path, cfg: Any, step: int) -> list[Board]:
    """The boards of these names. Raises InputError as `known`."""
    return [one(folder, cfg, step) for one in known(names)]


class TensorBoard:
    """Event files in `<phase>/tensorboard`: `tensorboard --logdir runs` shows all phases.

    They are written as the loop goes, without the thread of tensorboardX's own writer: where a disk
    is full that thread dies, and what waits for it waits for ever.
    """

    def __init__(self, folder: Path, cfg: Any, step: int) -> None:
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._summary, self._proto = summary, event_pb2
        (folder / "tensorboard").mkdir(parents=True, exist_ok=True)
        prefix = str(folder / "tensorboard" / "events")
        self._events = event_file_writer.EventsWriter(prefix, f".{step}")
        # What an interrupted run told after its last checkpoint is told again.
        begun = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step + 1, session_log=begun)
        if not step:
            self._write(0, summary=summary.text("config", f"```\n{cfg}\n```"))

    def _write(self, step: int, **what: Any) -> None:
        self._events.write_event(self._proto.Event(wall_time=time.time(), step=step, **what))
        self._events.flush()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        parts = [self._summary.scalar(name, value) for name, value in values.items()]
        self._write(step, summary=type(parts[0])(value=[one for p in parts for one in p.value]))

    def sheet(self, step: int, image: np.ndarray) -> None:
        image = np.asarray(image, np.uint8)
        self._write(step, summary=self._summary.image("samples", image, dataformats="HWC"))

    def clips(self, step: int, gif: bytes) -> None:
        """A GIF, which TensorBoard plays, as tensorboardX's own `video` writes it."""
        width, height = struct.unpack("<HH", gif[6:10])
        kind = self._proto.Event().summary.__class__
        value = {"height": height, "width": width, "colorspace": 3, "encoded_image_string": gif}
        self._write(step, summary=kind(value=[{"tag": "clips", "image": value}]))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # told before, of a full disk
            self._events.close()


class WandB:
    """A run of Weights & Biases, by the phase's name; its environment variables say where."""

    def __init__(self, folder: Path, cfg: Any, step: int) -> None:
        import wandb

        self._wandb = wandb
        short = cfg.name.replace("/", "-")
        kept = folder / "wandb-id.txt"
        if not (step and kept.is_file()):
            kept.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project="mv2_jax",
            name=short,
            id=kept.read_text().strip(),
            resume="allow",
            config=cfg.to_dict(),
            dir=str(folder),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({name: x for name, x in values.items() if math.isfinite(x)}, step=step)

    def sheet(self, step: int, image: np.ndarray) -> None:
        self._run.log({"samples": self._wandb.Image(image)}, step=step)

    def clips(self, step: int, gif: bytes) -> None:
        self._run.log({"clips": self._wandb.Video(io.BytesIO(gif), format="gif")}, step=step)

    def close(self) -> None:
        self._run.finish()
