"""`mv2 generate --prompts FILE -o FOLDER`: many videos by one process, or by several.

Files appear whole as they are done. A video that is there from the same request is kept, so that
the same command goes on where it was stopped. What fails is told and passed over, and listed at the
end.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mv2_jax import startup
from mv2_jax.arguments import part as part_of
from mv2_jax.errors import InputError
from mv2_jax.infer import generate, meshes, outputs, prompts
from mv2_jax.infer.generate import Job
from mv2_jax.infer.notes import warnings
from mv2_jax.infer.outputs import Outputs
from mv2_jax.infer.progress import Bars
from mv2_jax.infer.prompts import Asked, Lines
from mv2_jax.infer.ready import Checked, Ready
from mv2_jax.infer.request import sidecar

LAUNCHERS = (
    ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
"""Variables that say which process of how many this is."""


def command(args: argparse.Namespace) -> int:
    """Runs it; returns the exit code, 1 where a line failed.

    Raises:
        InputError: the file or the folder cannot be used.
    """
    if args.prompt:
        raise InputError("prompts come from --prompts; leave the others out")
    part = _part(args.part, args.mesh)
    first_process = meshes.begin(args.mesh)
    folder = outputs.here(args.out or "out")
    with meshes.agreed(args.mesh):
        if args.prompts == prompts.STDIN and meshes.several(args.mesh):
            raise InputError("--prompts -: standard input reaches one process; name a file")
        lines = Lines(args.prompts, part)
        if first_process:
            with outputs.told(folder):
                folder.mkdir(parents=True, exist_ok=True)
    if part[1] > 1:
        print(f"mv2: part {part[0]} of {part[1]}, a line in {part[1]}", file=sys.stderr)
    startup.loading()
    with Bars(silent=not first_process) as bars:
        videos = generate.Videos(bars, args.mesh, args.batch or 1, args.resident)
        work = _Work(args, folder, lines, videos, bars, first_process)
        for group in work.groups():
            work.run(group)
    if first_process:
        work.report()
    meshes.end(args.mesh)
    return 1 if work.failures else 0


def _part(asked: str | None, mesh: str | None) -> tuple[int, int]:
    """(i, n): which of how many processes that share the lines this is; alone where all of them
    make each video together, on a mesh.

    Raises:
        InputError: `asked` is not I/N.
    """
    if asked is not None:
        return part_of(asked)
    if mesh is None:
        for index, count in LAUNCHERS:
            if os.environ.get(index, "").isdecimal() and os.environ.get(count, "").isdecimal():
                return int(os.environ[index]), max(1, int(os.environ[count]))
    return 0, 1


class _Work:
    """The lines on their way to videos."""

    def __init__(
        self,
        args: argparse.Namespace,
        folder: Path,
        lines: Lines,
        videos: generate.Videos,
        bars: Bars,
        first_process: bool,
    ) -> None:
        self._args, self._folder, self._lines = args, folder, lines
        self._videos, self._bars, self._speaks = videos, bars, first_process
        self._ask, self._check = prompts.Asker(args), Checked(args.mesh)
        self._waiting: list[tuple[int, Job]] = []  # of the line taken last
        self._started = time.monotonic()
        self._seconds: list[tuple[int, float]] = []  # (videos, seconds) of each batch
        self.failures: list[tuple[int, str]] = []
        self.kept = 0

    def groups(self) -> Iterator[list[tuple[int, Job]]]:
        """(line, job) that one batch holds: those of neighbouring lines that are there already."""
        held = self._next(wait=True)
        while held is not None:
            group, alike = [held], self._videos.alike(held[1])
            while (held := self._next(wait=False)) is not None:
                if len(group) == group[0][1].room or self._videos.alike(held[1]) != alike:
                    break
                group.append(held)
            yield group
            held = held or self._next(wait=True)

    def _next(self, wait: bool) -> tuple[int, Job] | None:
        """The next video to make; None at the end, and where no line is there and it is not to
        `wait`."""
        while not self._waiting:
            line = self._lines.take(wait)
            if line is None:
                return None
            try:
                with meshes.agreed(self._args.mesh):
                    asked = self._ask(line)
                if asked is None:
                    continue
                seed = meshes.shared(self._args.mesh, asked.request.seed)
                request = dataclasses.replace(asked.request, seed=seed)
                with meshes.agreed(self._args.mesh):
                    ready = self._check.numbers(request)
                missing = self._missing(asked, ready)
                with meshes.agreed(self._args.mesh):
                    self._waiting = [(line.number, job) for job in self._jobs(missing, ready)]
            except InputError as error:
                self._failed(line.number, error)
        return self._waiting.pop(0)

    def _missing(self, asked: Asked, ready: Ready) -> list[tuple[int, Outputs]]:
        """The videos of a request that are not there yet: index, and files."""
        request, made = ready.request, []
        count = len(request.prompts)
        for index in range(count):
            name = asked.name + (f"-{index + 1}" if count > 1 else "")
            wanted = sidecar(request, index, ready.numbers, ready.bundle, {}, {})
            if asked.random:
                del wanted["seed"]
            there, files = self._place(name, wanted)
            if meshes.shared(self._args.mesh, there):
                self.kept += 1
            else:
                made.append((index, files))
        return made

    def _place(self, name: str, wanted: Mapping[str, Any]) -> tuple[bool, Outputs]:
        """Whether the video is there already, and its files: under the name, or where that is
        another request's, NAME_2 ...; nothing is replaced unless it is forced."""
        k = 1
        while True:
            stem = f"{name}_{k}" if k > 1 else name
            files = Outputs(self._folder / f"{stem}.mp4", self._args.stages)
            if self._args.force or not self._speaks:
                return False, files
            if not any(path.exists() for path in files.all):
                return False, files
            if _is_of(files, wanted):
                return all(path.exists() for path in files.all), files
            k += 1

    def _jobs(self, missing: list[tuple[int, Outputs]], ready: Ready) -> Iterator[Job]:
        """Jobs, with the user's picture or clip read; warnings are told."""
        if not missing:
            return
        ready = self._check.starts(ready)
        for text in warnings(ready.request, ready.bundle, ready.tokenizer) if self._speaks else ():
            self._say(f"mv2: warning: {text}")
        request = ready.request
        row = request.row if self._args.batch is None else (0, self._args.batch)
        for index, files in missing:
            if self._speaks:
                _clear(files)
            yield Job(ready, index, files, row)

    def run(self, group: list[tuple[int, Job]]) -> None:
        """Makes and writes the videos of one batch."""
        began, done = time.monotonic(), 0
        jobs = [job for _, job in group]
        self._bars.prefix = f"line {group[-1][0]} "
        try:
            for job, made, made_with in self._videos.make(jobs):
                if self._speaks:
                    seconds = time.monotonic() - self._started
                    told = generate.finish(
                        job, made, made_with, seconds, not self._args.no_metadata
                    )
                    self._bars.end()
                    print(*told, sep="\n", flush=True)
                done += 1
        except BrokenPipeError:
            raise  # nobody reads the results any more
        except Exception as error:
            if meshes.several(self._args.mesh) and not isinstance(error, InputError):
                raise  # the others may be waiting within the same program
            for number, _ in group[done:]:
                self._failed(number, error)
        self._seconds.append((done, time.monotonic() - began))

    def _failed(self, number: int, error: Exception) -> None:
        self.failures.append((number, _said(error)))
        self._say(f"mv2: line {number} failed: {_said(error)}")

    def _say(self, text: str) -> None:
        if self._speaks:
            self._bars.end()
            print(text, file=sys.stderr, flush=True)

    def report(self) -> None:
        """What came of it all: counts, pace, and what failed."""
        made = sum(count for count, _ in self._seconds)
        seconds = time.monotonic() - self._started
        told = [f"{made} video{'s' if made != 1 else ''} made in {seconds:.0f} s"]
        count, seconds = (sum(part) for part in zip((0, 0.0), *self._seconds[1:]))
        if count and seconds:
            told.append(f"{60 * count / seconds:.3g} a minute after the first")
        told += [f"{self.kept} were there"] if self.kept else []
        told += [f"{len(self.failures)} failed:"] if self.failures else []
        print(f"mv2: {'; '.join(told)}", file=sys.stderr)
        for number, text in sorted(self.failures):
            print(f"  line {number}: {text}", file=sys.stderr)


def _is_of(files: Outputs, wanted: Mapping[str, Any]) -> bool:
    """Whether a sidecar is there that asks for the same video."""
    try:
        found = json.loads(files.sidecar.read_text(encoding="utf-8"))
        return all(found.get(key) == value for key, value in _plain(wanted).items())
    except (OSError, ValueError, AttributeError):
        return False


def _plain(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What of a sidecar says what was asked for, as it is read back."""
    apart = ("mv2", "made_with", "result")
    kept = {key: value for key, value in wanted.items() if key not in apart}
    return json.loads(json.dumps(kept))


def _clear(files: Outputs) -> None:
    """Removes scratch files that a killed run left."""
    for path in files.all:
        for scratch in path.parent.glob(f".{glob.escape(path.stem[:40])}.*.part{path.suffix}"):
            scratch.unlink(missing_ok=True)


def _said(error: Exception) -> str:
    """An error as a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, InputError | OSError)
    return text if known else f"{type(error).__name__}: {text}"
