"""The files a generation leaves, named and checked before any work is done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mv2_jax import files
from mv2_jax.errors import InputError

PICTURE, CLIPS = "reference", ("keyframes", "refined")
"""What `--stages` keeps: a picture, and clips as video and contact sheet."""


@dataclass(frozen=True)
class Outputs:
    """The files of one video: `video` (MP4), and beside it a contact sheet and the sidecar."""

    video: Path
    stages: bool = False

    @property
    def sheet(self) -> Path:
        return self.video.with_suffix(".png")

    @property
    def sidecar(self) -> Path:
        return self.video.with_suffix(".json")

    def stage(self, name: str, suffix: str) -> Path:
        """What a stage made: out.keyframes.mp4 beside out.mp4."""
        return self.video.with_name(f"{self.video.stem}.{name}{suffix}")

    @property
    def all(self) -> list[Path]:
        paths = [self.video, self.sheet, self.sidecar]
        if self.stages:
            paths.append(self.stage(PICTURE, ".png"))
            paths += [self.stage(name, suffix) for name in CLIPS for suffix in (".mp4", ".png")]
        return paths


def plan(out: str | Path, count: int, stages: bool, inputs: Iterable[Path]) -> list[Outputs]:
    """Outputs for `count` videos: out.mp4, or out-1.mp4, out-2.mp4 ... for several.

    Raises:
        InputError: the name is no MP4's, the folder cannot be written, or a file would replace
            one of `inputs`.
    """
    out = Path(out)
    if out.suffix.lower() != ".mp4" or out.stem.startswith("."):
        raise InputError(f"cannot write {out}: the name of the video must end in .mp4")
    names = [out] if count == 1 else [out.with_stem(f"{out.stem}-{k + 1}") for k in range(count)]
    planned = [Outputs(name, stages) for name in names]
    sources = {path.resolve() for path in inputs}
    for path in (path for outputs in planned for path in outputs.all):
        if path.resolve() in sources:
            raise InputError(f"{path} is an input and would be replaced; choose another -o")
        check(path)
    return planned


def check(path: Path) -> None:
    """Raises InputError, before any work is done, where a file cannot be written."""
    with told(path):
        files.check(path)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """An OSError of the block as an InputError that says why `path` cannot be written."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot write {path}: {reason}") from None


def write(
    outputs: Outputs,
    frames: np.ndarray,
    fps: float,
    sidecar: dict[str, Any],
    stages: dict[str, np.ndarray],
    stage_fps: float,
) -> None:
    """Writes all files of one video; none takes its place before all are complete.

    Args:
        frames: [T, H, W, 3] uint8.
        fps: of the video.
        sidecar: see `mv2_jax.infer.request`.
        stages: what the stages made, by the names above; written where `outputs` says so.
        stage_fps: of the clips among them.

    Raises:
        OSError: a file cannot be written.
    """
    from mv2_jax.infer import media

    with ExitStack() as stack:

        def place(path: Path) -> Path:
            return stack.enter_context(files.whole(path))

        media.write_video(place(outputs.video), frames, fps)
        media.write_image(place(outputs.sheet), media.contact_sheet(frames))
        text = json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n"
        place(outputs.sidecar).write_text(text, encoding="utf-8")
        if outputs.stages:
            media.write_image(place(outputs.stage(PICTURE, ".png")), stages[PICTURE])
            for name in CLIPS:
                sheet = media.contact_sheet(stages[name])
                media.write_image(place(outputs.stage(name, ".png")), sheet)
                media.write_video(place(outputs.stage(name, ".mp4")), stages[name], stage_fps)
