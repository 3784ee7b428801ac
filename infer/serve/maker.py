"""Makes jobs by the cascade and by `mv2 interpolate`, in the worker's process."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mv2_jax import files
from mv2_jax.infer import frames, generate, interpolate, media, meshes
from mv2_jax.infer import interpolate_read as reading
from mv2_jax.infer.notes import warnings
from mv2_jax.infer.outputs import Outputs, provenance
from mv2_jax.infer.ready import Checked, Ready, heard
from mv2_jax.infer.serve import fields
from mv2_jax.infer.serve.store import EXPLANATION, Job, last_file
from mv2_jax.infer.serve.worker import Report
from mv2_jax.numbers import DIFFUSION

VIDEO = "video.mp4"
PREVIEWS = {"t2i": "picture", "i2v": "keyframes", "v2v": "refined"}
"""What each stage made, by its file's name: picture.png, keyframes.mp4, refined.mp4."""


class Cascade:
    """Makes videos and interpolations, on one device or a mesh (`serve.worker.Maker`)."""

    def __init__(self, weights: Any, mesh: str | None = None, resident: str = "all") -> None:
        self._weights, self._mesh, self._checked = weights, mesh, Checked(mesh)
        self._bars = _Now()
        self._videos = _StepByStep(self._bars, mesh, 1, resident, seen=self._seen)
        self._now: Any = None  # the request under way, and its folder

    def warm(self) -> None:
        """Loads the weights, and takes one step of every stage at the weights' own sizes, so that
        what most jobs need is compiled. Raises InputError."""
        meshes.of_one(self._mesh, joined=True)
        ready = self._checked(fields.first_request(self._weights))
        self._bars.report = _Log()
        four = self._videos.loaded(ready)
        used, _ = heard(ready, four)
        from mv2_jax.diffusion import keys

        common = {"keys": keys.seeds([0]), "progress": self._bars}
        made: list[Any] = []
        for stage in DIFFUSION:
            looks = iter((False,))
            begun = four.chain(stage, list(ready.request.prompts), numbers=used[stage], **common,
                               **dict(zip(("image", "keyframes"), made)))  # fmt: skip
            end = begun.end(look=lambda _, left=looks: next(left, True), at_once=1)
            pixels = four.made(begun, end)
            made.append(pixels[:, 0] if stage == "t2i" else pixels)
        between = int(used["vfi"]["between"])
        if between:
            four.vfi(made[-1], between + 1)

    def make(self, job: Job, folder: Path, report: Report) -> Mapping[str, Any]:
        """See `serve.worker.Maker`."""
        self._bars.report = report
        kinds = {"interpolation": self._smoother, EXPLANATION: self._explain}
        kinds.get(job.kind, self._video)(job, folder, report)
        report.end()
        told = {"durations": report.durations, "notes": report.notes}
        return {**self.found(job, folder), **told}

    def found(self, job: Job, folder: Path) -> Mapping[str, Any]:
        """See `serve.worker.Maker`."""
        if job.kind == EXPLANATION:
            return {}
        with frames.opened(folder / VIDEO) as container:
            stream = container.streams.video[0]
            return {
                "frames": stream.frames,
                "width": stream.width,
                "height": stream.height,
                "fps": round(float(stream.guessed_rate), 3),
                "seconds": round(float(stream.duration * stream.time_base), 3),
            }

    def _video(self, job: Job, folder: Path, report: Report) -> None:
        request = fields.request_of(fields.placed(job.asked["line"], folder), self._weights)
        ready = self._checked(request)
        for line in warnings(request, ready.bundle, ready.tokenizer):
            report.say(line)
        began = time.monotonic()
        one = generate.Job(ready, 0, Outputs(folder / VIDEO))
        self._now = ready, folder
        ((_, made, made_with),) = self._videos.make([one])
        report("writing", 0, 1)
        if job.asked.get("frames"):
            made = dataclasses.replace(made, frames=made.frames[: job.asked["frames"]])
        thumbnail(made.frames[0], folder)
        generate.finish(one, made, made_with, time.monotonic() - began)

    def _seen(self, stage: str, pixels: Any) -> None:
        """Writes what a stage made as a preview; what the user gave is no news."""
        (ready, folder), bars = self._now, self._bars
        if DIFFUSION.index(stage) < DIFFUSION.index(ready.request.start):
            return
        name, made = PREVIEWS[stage], media.to_uint8(pixels)[0]
        request, vfi = ready.request, ready.used["vfi"]
        about = provenance(
            {
                "prompt": request.prompts[0],
                "seed": request.seed,
                "weights": {"name": ready.bundle.name},
            }
        )
        if stage == "t2i":
            media.write_image(folder / f"{name}.png", made, about)
        else:
            pace = vfi["fps"] / (int(vfi["between"]) + 1)
            media.write_video(folder / f"{name}.mp4", made, pace, about)
        bars.report.preview(name)

    def _explain(self, job: Job, folder: Path, report: Report) -> None:
        """`mv2 explain` of what a video was asked for."""
        from mv2_jax.infer import explain

        request = fields.request_of(job.asked["line"], self._weights)
        ready = self._checked(request)
        page = explain.explain(
            self._videos.loaded(ready),
            request.prompts[0],
            ready.used,
            request.seed,
            request.negative,
            self._bars,
            self._videos.made_with,
        )
        with files.whole(folder / last_file(job.kind)) as scratch:
            scratch.write_text(page, encoding="utf-8")

    def _smoother(self, job: Job, folder: Path, report: Report) -> None:
        clip = folder / job.asked["clip"]
        args = fields.interpolation(job.asked["fields"], str(clip), str(folder / VIDEO))
        args.mesh = self._mesh
        with reading.opened(clip) as source:
            for fault in source.survey.faults:
                report.say(fault)
            made = folder / "smooth.mp4"
            interpolate.run(source, str(made), args, _Bar(report, source.survey.count))
        report("writing", 0, 1)
        with frames.opened(made) as container:
            stream = container.streams.video[0]
            thumbnail(media.rgb(next(container.decode(stream)), stream), folder)
        made.rename(folder / VIDEO)


class _StepByStep(generate.Videos):
    """Videos whose chains may be stopped at every step."""

    def loaded(self, ready: Ready) -> Any:
        return dataclasses.replace(super().loaded(ready), at_once=1)


class _Now:
    """Hands what the cascade says to the report of the job that is made now."""

    report: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.report(stage, done, total)

    def say(self, line: str) -> None:
        self.report.say(line)

    def loading(self) -> Any:
        return self.report.loading()


class _Log:
    """The report of what is done before the first job: a line a stage, of however many programs."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage.startswith("compiling") and stage not in self._said:
            self._said.add(stage)
            self.say(f"mv2: {stage}")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def loading(self) -> Any:
        return nullcontext()


class _Bar:
    """The progress bar that `mv2 interpolate` moves, as a report."""

    def __init__(self, report: Report, total: int) -> None:
        self._report, self._total, self._done = report, max(total, 1), 0
        report("vfi", 0, self._total)

    def update(self, count: int = 1) -> None:
        self._done += count
        self._report("vfi", min(self._done, self._total), self._total)

    def set_description_str(self, text: str) -> None:
        if text == "compiling":
            self._report("compiling vfi", 0, 1)

    def write(self, *_: Any, **__: Any) -> None:
        pass


def thumbnail(picture: np.ndarray, folder: Path) -> None:
    """Writes [H, W, 3] uint8 as thumbnail.webp, 512 pixels a side at most."""
    small = Image.fromarray(picture)
    small.thumbnail((512, 512))
    with files.whole(folder / "thumbnail.webp") as scratch:
        small.save(scratch, format="WEBP")


def main(arguments: list[str]) -> int:
    """The worker's process: `python -m mv2_jax.infer.serve.maker FOLDER NAME JSON`."""
    from mv2_jax.infer.serve import worker

    folder, name, told = arguments
    return worker.run(Path(folder), name, Cascade(**json.loads(told)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
