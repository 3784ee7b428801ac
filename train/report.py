"""What a phase tells people: lines, a metrics file, loss curves, sample sheets."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mv2_jax.train import boards


@dataclass(frozen=True)
class Moving:
    """Samples of clips: a sheet of all their frames, uint8 [H, W, 3], and the clips side by side
    as they move, uint8 [T, H', W', 3]."""

    sheet: np.ndarray
    frames: np.ndarray
    fps: float


class Report:
    """Metrics of one phase: `metrics.jsonl`, `curves.png`, `samples/*.png` under its folder, and
    the boards that its settings name."""

    def __init__(self, folder: Path, cfg: Any, start_step: int = 0) -> None:
        self.folder, self.name = folder, cfg.name
        self.path = folder / "metrics.jsonl"
        self.rows = [row for row in _rows(self.path) if row["step"] <= start_step]
        folder.mkdir(parents=True, exist_ok=True)
        self.boards = boards.make(cfg.reports, folder, cfg, start_step)
        # What an interrupted run logged after its last checkpoint will be logged again.
        self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def log(self, step: int, steps: int, values: dict[str, float]) -> None:
        """One line to stdout and one to the metrics file."""
        row = {"step": step, **values}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for board in self.boards:
            board.log(step, values)
        said = "  ".join(f"{key} {_short(key, value)}" for key, value in values.items())
        print(f"[{self.name}] {step}/{steps}  {said}", flush=True)

    def curves(self) -> None:
        """Draws every metric over steps into `curves.png`, losses with a running mean."""
        if len(self.rows) < 2:
            return
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        named = {k: None for row in self.rows for k in row}  # not all are in every row
        keys = [k for k in named if k not in ("step", "minutes")]
        columns = 3
        lines = -(-len(keys) // columns)
        figure, axes = pyplot.subplots(
            lines, columns, figsize=(4.2 * columns, 2.8 * lines), squeeze=False
        )
        for axis, key in zip(axes.flat, keys):
            points = [(row["step"], row[key]) for row in self.rows if key in row]
            steps, values = (np.array(column, float) for column in zip(*points))
            axis.plot(steps, values, linewidth=0.7, alpha=0.5)
            axis.plot(steps, _smooth(values), linewidth=1.5)
            axis.set_title(key, fontsize=9)
            axis.grid(alpha=0.3)
            if key.startswith("loss") and (values > 0).all():
                axis.set_yscale("log")
        for axis in list(axes.flat)[len(keys) :]:
            axis.set_visible(False)
        figure.suptitle(self.name)
        figure.tight_layout()
        figure.savefig(self.folder / "curves.png", dpi=90)
        pyplot.close(figure)

    def sheet(self, step: int, image: np.ndarray | Moving) -> Path:
        """Writes a sample sheet, uint8 [H, W, 3], as `samples/step_XXXXXXX.png`; of one that moves
        also a GIF of the same name."""
        from PIL import Image

        moving = image if isinstance(image, Moving) else None
        image = moving.sheet if moving else image
        path = self.folder / "samples" / f"step_{step:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image, np.uint8)).save(path)
        for board in self.boards:
            board.sheet(step, image)
        if moving:
            made = gif(moving.frames, moving.fps)
            path.with_suffix(".gif").write_bytes(made)
            for board in self.boards:
                if hasattr(board, "clips"):  # one's own may have none
                    board.clips(step, made)
        return path

    def close(self) -> None:
        """Ends what the boards have under way."""
        for board in self.boards:
            board.close()


def grid(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """uint8 [N, H, W, 3] -> one sheet with `columns` images a row, on white."""
    n, h, w, _ = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = (index // columns) * (h + gap) + gap, (index % columns) * (w + gap) + gap
        sheet[y : y + h, x : x + w] = image
    return sheet


def gif(frames: np.ndarray, fps: float) -> bytes:
    """uint8 [T, H, W, 3] -> a GIF that repeats; its times are in hundredths of a second."""
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in np.asarray(frames, np.uint8))
    lasts = max(2, round(100 / fps)) * 10
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=lasts, loop=0)
    return file.getvalue()


def to_uint8(x: Any) -> np.ndarray:
    """Floats in [-1, 1] (clipped) -> uint8."""
    return np.asarray(np.clip(np.asarray(x, np.float32) * 127.5 + 128.0, 0, 255), np.uint8)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # a run killed in mid-line
    return rows


def _short(key: str, value: float) -> str:
    return f"{value:.2e}" if key == "rate" else f"{value:.4g}"


def _smooth(values: np.ndarray, share: float = 0.02) -> np.ndarray:
    """A running mean over a small share of all points, narrower at the ends."""
    reach = max(1, int(len(values) * share))
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (total[high] - total[low]) / (high - low)
