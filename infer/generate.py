"""From prompts to videos: the cascade run stage by stage, with files and bars around it.

`command` is what `mv2 generate` does; `make` is the four stages alone, for use from Python:

    from mv2_jax import bundle, cascade
    from mv2_jax.infer import generate, settings

    weights = bundle.read()
    numbers = settings.resolve({"t2i_steps": 30}, {}, weights)
    made = generate.make(cascade.load(weights), ["a red ball bouncing over a meadow"], numbers)
    made.frames  # uint8 [1, T, H, W, 3]
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mv2_jax import startup
from mv2_jax.infer import cache, interpolators, media, meshes, outputs
from mv2_jax.infer.notes import warnings
from mv2_jax.infer.outputs import Outputs
from mv2_jax.infer.progress import Bars
from mv2_jax.infer.ready import (
    Checked,
    Ready,
    check_steps,
    check_told,
    heard,
    interpolator,
    told,
)
from mv2_jax.infer.release import version
from mv2_jax.infer.request import Request, sidecar
from mv2_jax.numbers import DIFFUSION

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle
    from mv2_jax.cascade import Cascade
    from mv2_jax.infer.settings import Numbers


@dataclass(frozen=True)
class Made:
    """What the stages made, uint8: the picture [B, H, W, 3], and clips [B, T, H, W, 3].

    `frames` is the video. `picture` and `keyframes` are the user's own where they gave them.
    """

    picture: np.ndarray
    keyframes: np.ndarray
    refined: np.ndarray
    frames: np.ndarray


def make(
    cascade: Cascade,
    prompts: Sequence[str],
    numbers: Numbers,
    *,
    negative: str | Mapping[str, str] = "",
    seed: int | Sequence[int] = 0,
    picture: np.ndarray | None = None,
    clip: np.ndarray | None = None,
    progress: Any = None,
    tell: Mapping[str, str] | None = None,
    shown: Mapping[str, np.ndarray] | None = None,
    loop: bool = False,
    seen: Callable[[str, Any], None] | None = None,
) -> Made:
    """Runs the stages for B prompts; each video is as if made alone.

    Args:
        numbers: of every stage (`settings.resolve`).
        negative: what to steer away from; or by stage, {"i2v": "blurry"}.
        seed: of every video, or one a video.
        picture: [H, W, 3] uint8 of T2I's size, to start at I2V from.
        clip: [T, H, W, 3] uint8, keyframes to start at V2V from; its first frame is the
            picture where none is given.
        progress: callback (stage, done, total), see `mv2_jax.programs.Progress`.
        tell: what conditions of one's own are told, by name.
        shown: what the video stages are shown beside the picture (`ready.shown`), for all videos.
        loop: put frames between the last keyframe and the first too.
        seen: called with each diffusion stage's name and float pixels, as it ends.
    """
    from mv2_jax.diffusion import keys as named
    from mv2_jax.programs import silent

    prompts, batch = list(prompts), len(prompts)
    keys = named.seeds([seed] * batch if isinstance(seed, int) else list(seed))
    common = {"keys": keys, "progress": progress or silent}
    away = negative if isinstance(negative, Mapping) else dict.fromkeys(DIFFUSION, negative)

    def given(stage: str) -> dict[str, Any]:
        more = told(cascade, stage, tell or {}, batch)
        if stage != "t2i":
            read = cascade.inputs(stage) if shown else ()
            more |= {name: each(pixels) for name, pixels in (shown or {}).items() if name in read}
        extra = {"more": more} if more else {}
        return {**common, "negative": away.get(stage, ""), **numbers[stage], **extra}

    def each(x: np.ndarray) -> np.ndarray:
        return np.repeat(media.to_float(x)[None], batch, axis=0)

    seen = seen or (lambda stage, pixels: None)
    if picture is None and clip is not None:
        picture = clip[0]
    image = cascade.t2i(prompts, **given("t2i")) if picture is None else each(picture)
    seen("t2i", image)
    if clip is None:
        keyframes = cascade.i2v(prompts, image, **given("i2v"))
    else:
        keyframes = each(clip)
    seen("i2v", keyframes)
    refined = cascade.v2v(prompts, image, keyframes, **given("v2v"))
    seen("v2v", refined)
    between = int(numbers["vfi"]["between"])
    frames = refined
    if between:
        whole = np.concatenate([refined, refined[:, :1]], axis=1) if loop else refined
        frames = cascade.vfi(whole, between + 1, progress=progress or silent)
        frames = frames[:, :-1] if loop else frames
    return Made(*(media.to_uint8(x) for x in (image, keyframes, refined, frames)))


@dataclass(frozen=True)
class Job:
    """One video to make: prompt `index` of a request, and the files that it becomes.

    `place` is (row, batch): where in how large a batch it is made.
    """

    ready: Ready
    index: int
    outputs: Outputs
    place: tuple[int, int] = (0, 1)

    @property
    def prompt(self) -> str:
        return self.ready.request.prompts[self.index]

    @property
    def room(self) -> int:
        """How many of its like its batch holds."""
        row, batch = self.place
        return batch - row

    @property
    def seed(self) -> int:
        return self.ready.request.seeds[self.index]


def command(
    request: Request,
    out: str | Path,
    stages: bool = False,
    batch: int | None = None,
    *,
    force: bool = True,
    metadata: bool = True,
    mesh: str | None = None,
    resident: str = "all",
) -> None:
    """Makes and writes the videos of a request.

    Everything that can be wrong is found before the first stage runs.

    Args:
        out: the MP4's name.
        stages: keep what every stage made.
        batch: videos made at a time: 1, or what the earlier video was made in. Each is the one made
            alone, with more but for rounding, and its sidecar makes it again bit for bit.
        force: replace files that are there already.
        metadata: let the files say that they are generated, by what, from which prompt and seed.
        mesh: as `--mesh` takes it. Of several processes the first writes the files and speaks.
        resident: "all", or "stage": see `mv2_jax.components`.

    Raises:
        InputError: anything wrong with the request, the files it names, or the weights.
        OSError: the disk failed while writing.
    """
    first_process = meshes.begin(mesh)
    request = dataclasses.replace(request, seed=meshes.shared(mesh, request.seed))
    inputs = [source.path for source in request.sources]
    with meshes.agreed(mesh):
        planned = outputs.plan(out, len(request.prompts), stages, inputs, force, first_process)
        ready = Checked(mesh)(request)
    for line in warnings(request, ready.bundle, ready.tokenizer) if first_process else ():
        print(f"mv2: warning: {line}", file=sys.stderr)
    startup.loading()
    started = time.monotonic()
    place = request.row if batch is None else (0, min(batch, len(planned)))
    jobs = [Job(ready, index, files, place) for index, files in enumerate(planned)]
    with Bars(silent=not first_process) as bars:
        videos = Videos(bars, mesh, place[1], resident)
        done = 0
        for group in grouped(jobs, videos.alike):
            done += len(group)
            bars.prefix = f"{done}/{len(jobs)} " if len(jobs) > 1 else ""
            for job, made, made_with in videos.make(group):
                if first_process:
                    told = finish(job, made, made_with, time.monotonic() - started, metadata)
                    bars.end()
                    print(*told, sep="\n", flush=True)
    meshes.end(mesh)


def grouped(jobs: Sequence[Job], alike: Callable[[Job], Any]) -> Iterator[list[Job]]:
    """Neighbours among the jobs that one batch can hold, as many as it holds."""
    for _, same in itertools.groupby(jobs, alike):
        left = list(same)
        while left:
            yield left[: left[0].room]
            left = left[left[0].room :]


class Videos:
    """Makes jobs' videos. Weights stay loaded from one batch to the next, programs compiled.

    Args:
        mesh: as `--mesh` takes it.
        samples: made at a time, for `--mesh auto`.
        resident: "all", or "stage": see `mv2_jax.components`.
        seen: see `make`.
    """

    def __init__(
        self, bars: Bars, mesh: str | None = None, samples: int = 1, resident: str = "all",
        seen: Callable[[str, Any], None] | None = None,
    ) -> None:  # fmt: skip
        self._bars, self._asked, self._seen = bars, (mesh, samples, resident), seen
        self._weights: Any = None
        self._digest = self._network = ""
        self._cascade: Any = None
        self.made_with: dict[str, Any] = {}  # what is loaded runs on

    def alike(self, job: Job) -> Any:
        """Equal for jobs that one batch can hold."""
        form = job.ready.form(job.prompt) if job.place[1] > 1 else None
        return job.ready.alike, job.place, job.outputs.stages, form

    def make(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Made, dict[str, Any]]]:
        """The videos of jobs that are `alike`, each with what it was made with.

        A batch is filled up, so that each runs the program that the others ran.

        Raises:
            InputError: what only a loaded cascade can know to be wrong.
        """
        ready, (row, batch) = jobs[0].ready, jobs[0].place
        request = ready.request
        cascade = self.loaded(ready)
        used, deaf = heard(ready, cascade)
        notes = ready.merged.notes if ready.merged else []
        for line in [*deaf, *notes] if jobs[0].index == 0 else ():
            self._bars.say(f"mv2: warning: {line}")
        filled = [jobs[0]] * row + list(jobs)
        filled += [jobs[-1]] * (batch - len(filled))
        made = make(
            cascade,
            [job.prompt for job in filled],
            used,
            negative={stage: request.away(stage) for stage in DIFFUSION},
            seed=[job.seed for job in filled],
            picture=ready.picture,
            clip=ready.clip,
            progress=self._bars,
            tell=request.tell,
            shown=ready.shown,
            loop=ready.sized.stages["v2v"].context == "closed",
            seen=self._seen,
        )
        for k, job in enumerate(jobs, start=row):
            one = Made(*(getattr(made, field.name)[k] for field in dataclasses.fields(made)))
            shape = {"batch": batch, "row": k} if batch > 1 else {}
            yield job, one, {**self.made_with, **shape}

    def loaded(self, ready: Ready) -> Any:
        """The cascade of a request, from what is loaded already where that is possible."""
        sized = ready.sized
        files = tuple(part.sha256 for part in sized.components.values())
        weights = (sized.folder, files, ready.request.loras)
        digest, network = sized.digest, interpolator(sized)
        if weights != self._weights:
            self._cascade = self._weights = None  # what was loaded makes room
            with self._bars.loading():
                self._cascade, self.made_with = load(sized, *self._asked)
                if ready.merged is not None:
                    self._cascade = ready.merged.into(self._cascade)
        elif digest != self._digest:
            self._cascade = restage(self._cascade, sized, network != self._network)
        self._weights, self._digest, self._network = weights, digest, network
        check_steps(sized, ready.used, ready.request.start)
        check_told(ready.request, self._cascade)
        return self._cascade


def finish(
    job: Job, made: Made, made_with: Mapping[str, Any], seconds: float, metadata: bool = True
) -> list[str]:
    """Writes one video's files; the lines that say so. Raises OSError as `outputs.write`."""
    ready, request = job.ready, job.ready.request
    fps = ready.used["vfi"]["fps"]
    result = {"fps": fps, **describe(made.frames)}
    side = sidecar(request, job.index, ready.numbers, ready.bundle, made_with, result)
    parts = {"reference": made.picture, "keyframes": made.keyframes, "refined": made.refined}
    pace = fps / (int(ready.used["vfi"]["between"]) + 1)
    about = outputs.provenance(side) if metadata else None
    outputs.write(job.outputs, made.frames, fps, side, parts, pace, about)
    told = [summary(job.outputs.video, made.frames, fps, seconds, job.seed)]
    return [*told, compare(request.before, side)] if request.before is not None else told


def load(
    bundle: Bundle, mesh: str | None = None, samples: int = 1, resident: str = "all"
) -> tuple[Any, dict[str, str]]:
    """The cascade, and what it runs on (for the sidecar). This is where JAX is loaded.

    `mesh` is as `--mesh` takes it, for so many `samples` at a time; `resident` as `--resident`
    does. The cascade's programs are
    kept from run to run (`infer.kept`): for commands, which run no code but this package's. Code of
    your own loads by `mv2_jax.cascade.load`.
    """
    import jax
    import jax.numpy as jnp

    folder = cache.enable()
    from mv2_jax import cascade as cascades
    from mv2_jax.infer.kept import Kept
    from mv2_jax.programs import Programs

    over = meshes.of(mesh, samples, bundle.stages["i2v"].frames)
    meshes.say(over)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    made_with = {**meshes.facts(over), "dtype": jnp.dtype(dtype).name}
    loaded = cascades.load(
        bundle, dtype, interpolator=_between(bundle), mesh=over, resident=resident
    )
    programs = Programs(Kept(folder, over) if folder else None, over)
    return dataclasses.replace(loaded, programs=programs), made_with


def restage(cascade: Cascade, bundle: Bundle, anew: bool) -> Cascade:
    """A loaded cascade with the stages of another reading of its folder, and the same programs.

    `anew` says whether the interpolator is another one.
    """
    from mv2_jax import cascade as cascades
    from mv2_jax import components

    staged = cascades.restaged(cascade, bundle)
    if not anew:
        return staged
    return staged.with_interpolator(*(_between(bundle) or components.own_interpolator(bundle)))


def _between(bundle: Bundle) -> Any:
    """The interpolator that was chosen, loaded; None where the folder's own shall serve."""
    network = interpolator(bundle)
    return None if network in (None, "none") else interpolators.load(network, bundle)


def describe(frames: np.ndarray) -> dict[str, Any]:
    """Size and checksum of a video's frames [T, H, W, 3], for the sidecar."""
    count, height, width = frames.shape[:3]
    digest = hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()
    return {"frames": count, "height": height, "width": width, "frames_sha256": digest}


def summary(path: Path, frames: np.ndarray, fps: float, seconds: float, seed: int) -> str:
    """The line a user reads when a video is done."""
    count, height, width = frames.shape[:3]
    return (
        f"{path}: {count} frames of {width}x{height}, {count / fps:.1f} s at {fps:g} a second, "
        f"seed {seed}; done after {seconds:.0f} s"
    )


def compare(before: Any, now: dict[str, Any]) -> str:
    """Whether a video made from a sidecar has the frames that the sidecar recorded."""
    if before["result"].get("frames_sha256") == now["result"]["frames_sha256"]:
        return "the frames are the same as before"
    then, here = ({"batch": 1, **side["made_with"]} for side in (before, now))
    changed = [
        f"{key} {then.get(key)} then, {here.get(key)} now"
        for key in {**then, **here}
        if then.get(key) != here.get(key) and key != "row"
    ]
    if before.get("mv2") != version():
        changed.append(f"mv2 {before.get('mv2')} then, {version()} now")
    return f"the frames differ from before ({'; '.join(changed) or 'in rounding, or in inputs'})"
