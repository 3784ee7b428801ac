"""Where a phase's numbers and sheets go beside its own files: TensorBoard, Weights & Biases.

A board is a value: `make(folder, cfg, step)` returns one, `cfg` being the phase's settings,
`folder` its own and `step` where it begins or resumes. `reports` of a phase names those that it
has, words of `BOARDS` or `module:name`.
"""

from __future__ import annotations

import math
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
        """A sample sheet, uint8 [H, W, 3]."""

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
    """Event files in `<phase>/tensorboard`: `tensorboard --logdir runs` shows all phases."""

    def __init__(self, folder: Path, cfg: Any, step: int) -> None:
        from tensorboardX import SummaryWriter

        # What an interrupted run told after its last checkpoint is told again.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        if not step:
            self._writer.add_text("config", f"```\n{cfg}\n```", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def sheet(self, step: int, image: np.ndarray) -> None:
        self._writer.add_image("samples", np.asarray(image, np.uint8), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases, by the phase's name; its environment variables say where."""

    def __init__(self, folder: Path, cfg: Any, step: int) -> None:
        import wandb

        self._wandb = wandb
        short = cfg.name.replace("/", "-")
        kept = folder / "wandb-id.txt"
        if not (step and kept.is_file()):
            kept.write_text(wandb.util.generate_id())
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

    def close(self) -> None:
        self._run.finish()
