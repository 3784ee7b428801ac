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
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mv2_jax import bundle as bundles
from mv2_jax.configs import presets
from mv2_jax.errors import InputError
from mv2_jax.infer import cache, choices, interpolators, media, meshes, outputs, settings
from mv2_jax.infer.progress import Bars
from mv2_jax.infer.release import version
from mv2_jax.infer.request import Request, interpolators_of, sidecar

if TYPE_CHECKING:
    from mv2_jax.infer.settings import Numbers

_LARGEST = 4096
_DIFFUSION = ("t2i", "i2v", "v2v")


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
    cascade: Any,
    prompts: Sequence[str],
    numbers: Numbers,
    *,
    negative: str = "",
    seed: int | Sequence[int] = 0,
    picture: np.ndarray | None = None,
    clip: np.ndarray | None = None,
    progress: Any = None,
    tell: Mapping[str, str] | None = None,
) -> Made:
    """Runs the stages for B prompts; each video is as if made alone.

    Args:
        numbers: of every stage (`settings.resolve`).
        seed: of every video, or one a video.
        picture: [H, W, 3] uint8 of T2I's size, to start at I2V from.
        clip: [T, H, W, 3] uint8, keyframes to start at V2V from; its first frame is the
            picture where none is given.
        progress: callback (stage, done, total), see `mv2_jax.programs.Progress`.
        tell: what conditions of one's own are told, by name.
    """
    from mv2_jax.diffusion import keys as random
    from mv2_jax.programs import silent

    prompts, batch = list(prompts), len(prompts)
    keys = random.seeds([seed] * batch if isinstance(seed, int) else list(seed))
    common = {"negative": negative, "keys": keys, "progress": progress or silent}

    def given(stage: str) -> dict[str, Any]:
        more = told(cascade, stage, tell or {}, batch)
        return {**common, **numbers[stage], **({"more": more} if more else {})}

    def each(x: np.ndarray) -> np.ndarray:
        return np.repeat(media.to_float(x)[None], batch, axis=0)

    if picture is None and clip is not None:
        picture = clip[0]
    image = cascade.t2i(prompts, **given("t2i")) if picture is None else each(picture)
    if clip is None:
        keyframes = cascade.i2v(prompts, image, **given("i2v"))
    else:
        keyframes = each(clip)
    refined = cascade.v2v(prompts, image, keyframes, **given("v2v"))
    between = int(numbers["vfi"]["between"])
    frames = refined
    if between:
        frames = cascade.vfi(refined, between + 1, progress=progress or silent)
    return Made(*(media.to_uint8(x) for x in (image, keyframes, refined, frames)))


def command(
    request: Request,
    out: str | Path,
    stages: bool = False,
    batch: int = 1,
    *,
    force: bool = True,
    metadata: bool = True,
    mesh: str | None = None,
) -> None:
    """Makes and writes the videos of a request.

    Everything that can be wrong is found before the first stage runs.

    Args:
        out: the MP4's name.
        stages: keep what every stage made.
        batch: prompts made at a time. At 1 each video is bit for bit the one made alone; with
            more, equal but for rounding, and faster on an accelerator.
        force: replace files that are there already.
        metadata: let the files say that they are generated, by what, from which prompt and seed.
        mesh: as `--mesh` takes it. Of several processes the first writes the files and speaks.

    Raises:
        InputError: anything wrong with the request, the files it names, or the weights.
        OSError: the disk failed while writing.
    """
    first_process = meshes.begin(mesh)
    inputs = [source.path for source in (request.image, request.video) if source]
    with meshes.agreed(mesh):
        planned = outputs.plan(out, len(request.prompts), stages, inputs, force, first_process)
        preset = request.choices.get("all", {}).get("preset")
        bundle = presets.complete(bundles.read(request.weights), preset)
        sized = choices.apply(with_size(bundle, request.size), request.choices)
        numbers = settings.resolve(request.given, request.base, sized)
        picture, clip = _starts(request, sized, numbers)
        used, network = numbers, _interpolator(sized)
        if network == "none":
            used = _keyframes_alone(numbers)
        elif network:
            interpolators.fits(network, int(numbers["vfi"]["between"]) + 1, "--between 1", sized)
        bundle.verify()
    for line in warnings(request, bundle) if first_process else ():
        print(f"mv2: warning: {line}", file=sys.stderr)

    started = time.monotonic()
    fps = used["vfi"]["fps"]
    batch = min(batch, len(planned))
    with Bars(silent=not first_process) as bars:
        with bars.loading():
            cascade, made_with = load(sized, mesh, batch)
        check_steps(sized, used, request.start)
        check_told(request, cascade)
        for first in range(0, len(planned), batch):
            chosen = request.prompts[first : first + batch]
            # The last group is filled up, so that it runs the program that the others ran.
            if len(planned) > 1:
                bars.prefix = f"{first + len(chosen)}/{len(planned)} "
            filled = [*chosen, *[chosen[-1]] * (batch - len(chosen))]
            made = make(
                cascade,
                filled,
                used,
                negative=request.negative,
                seed=request.seed,
                picture=picture,
                clip=clip,
                progress=bars,
                tell=request.tell,
            )
            if not first_process:
                continue
            for index, one in enumerate(_singly(made, len(chosen)), start=first):
                result = {"fps": fps, **describe(one.frames)}
                side = sidecar(request, index, numbers, bundle, made_with, result)
                parts = {
                    "reference": one.picture,
                    "keyframes": one.keyframes,
                    "refined": one.refined,
                }
                pace = fps / (int(used["vfi"]["between"]) + 1)
                about = outputs.provenance(side) if metadata else None
                outputs.write(planned[index], one.frames, fps, side, parts, pace, about)
                seconds = time.monotonic() - started
                print(summary(planned[index].video, one.frames, fps, seconds))
                if request.before is not None:
                    print(compare(request.before, side))
    meshes.end(mesh)


def load(bundle: Any, mesh: str | None = None, samples: int = 1) -> tuple[Any, dict[str, str]]:
    """The cascade, and what it runs on (for the sidecar). This is where JAX is loaded.

    `mesh` is as `--mesh` takes it, for so many `samples` at a time. The cascade's programs are
    kept from run to run (`infer.kept`): for commands, which run no code but this package's. Code of
    your own loads by `mv2_jax.cascade.load`.
    """
    import jax
    import jax.numpy as jnp

    folder = cache.enable()
    from mv2_jax import cascade
    from mv2_jax.infer.kept import Kept
    from mv2_jax.programs import Programs

    over = meshes.of(mesh, samples, bundle.stages["i2v"].frames)
    meshes.say(over)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    made_with = {**meshes.facts(over), "dtype": jnp.dtype(dtype).name}
    network = _interpolator(bundle)
    between = None if network in (None, "none") else interpolators.load(network, bundle)
    loaded = cascade.load(bundle, dtype, interpolator=between, mesh=over)
    programs = Programs(Kept(folder, over) if folder else None, over)
    return dataclasses.replace(loaded, programs=programs), made_with


def check_steps(bundle: Any, numbers: Numbers, start: str = "t2i") -> None:
    """Refuses a number of steps that a stage's sampler and schedule cannot make.

    Args:
        start: the first stage to run.

    Raises:
        InputError: the flag is named, and why.
    """
    from mv2_jax.stages import chain

    for stage in _DIFFUSION[_DIFFUSION.index(start) :]:
        cfg, steps = bundle.stages[stage], int(numbers[stage]["steps"])
        try:
            chain.program(cfg, steps)
        except ValueError as error:
            raise InputError(f"--{stage}-steps {steps} with {cfg.sampler}: {error}") from None


def check_told(request: Request, cascade: Any) -> None:
    """Refuses what no stage of the video would hear.

    Raises:
        InputError: a scale of the picture where no rule has one, or a `--tell` of no condition.
    """
    if request.given.get("image_guidance") is None and not request.tell:
        return
    stages = [cascade.stage(name) for name in _DIFFUSION[_DIFFUSION.index(request.start) :]]
    scales = {scale for stage in stages for scale in stage.rule.scales}
    if request.given.get("image_guidance") is not None and "image" not in scales:
        raise InputError(
            "--image-guidance has no effect: these weights' guidance rule has no scale for the "
            "picture; add --guidance-rule apart"
        )
    own = {each.name for stage in stages for each in stage.conditions if hasattr(each, "read")}
    for name in request.tell:
        if name not in own:
            known = f"; it has {', '.join(sorted(own))}" if own else ""
            raise InputError(f"--tell {name}: these weights have no such condition{known}")


def told(cascade: Any, stage: str, tell: Mapping[str, str], count: int) -> dict[str, Any]:
    """The raw inputs of a stage's own conditions for `count` samples, from what a user wrote.

    Raises:
        InputError: words that a condition does not understand.
    """
    made = {}
    for each in cascade.stage(stage).conditions if tell else ():
        if each.name in tell:
            try:
                made[each.name] = each.read([tell[each.name]] * count)
            except ValueError as error:
                raise InputError(f"--tell {each.name}={tell[each.name]}: {error}") from None
    return made


def with_size(bundle: Any, size: tuple[int, int] | None) -> Any:
    """The bundle with its stages set to make videos of (height, width).

    T2I and I2V keep their share of the video's size, to the nearest size they can make.

    Raises:
        InputError: the weights lack a stage, or the size is not one that V2V can make.
    """
    for stage in _DIFFUSION:
        if stage not in bundle.stages:
            raise InputError(f"{bundle.folder} says nothing of the stage {stage}")
    own = bundle.stages["v2v"].size
    if size is None or size == own:
        return bundle
    factor = bundle.config("vae").factor
    for side in size:
        if side % factor or not 2 * factor <= side <= _LARGEST:
            raise InputError(
                f"--size {size[1]}x{size[0]} is impossible with these weights: each side is a "
                f"multiple of {factor} from {2 * factor} to {_LARGEST}"
            )
    stages = dict(bundle.stages)
    for name in _DIFFUSION:
        shares = [part * new / old for part, new, old in zip(stages[name].size, size, own)]
        cells = tuple(max(1, round(share / factor)) * factor for share in shares)
        stages[name] = dataclasses.replace(stages[name], size=cells)
    return dataclasses.replace(bundle, stages=stages)


def warnings(request: Request, bundle: Any) -> Iterator[str]:
    """Lines for things that are not wrong, but that the user will want to know."""
    from mv2_jax import text

    tokenizer = text.from_json(bundle.tokenizer)
    unknown = {}
    for prompt in (*request.prompts, request.negative):
        unknown.update(tokenizer.unknown(text.emphasis.plain(prompt)))
    if unknown:
        words = ", ".join(f'"{word}" (nearest: "{near}")' for word, near in unknown.items())
        yield f"these weights do not know {words}"
    for prompt in request.prompts:
        if not tokenizer.in_rows and _is_cut(tokenizer, text.emphasis.plain(prompt)):
            yield f'these weights read less than the whole of "{prompt}"; its end is ignored'
    if request.before is not None:
        then = request.before
        if then["weights"].get("sha256") != bundle.digest:
            yield "these are not the weights the video was made with; the frames will differ"
        for source, key in ((request.image, "from_image"), (request.video, "from_video")):
            if source and then[key]["sha256"] != source.sha256:
                yield f"{source.path} has changed since; the frames will differ"
        for path, sha256 in interpolators_of(request).items():
            if then["weights"].get("interpolators", {}).get(path) != sha256:
                yield f"{path} has changed since; the frames will differ"


def _is_cut(tokenizer: Any, prompt: str) -> bool:
    """Whether the tokenizer drops the end of a prompt: the row is full without its last word."""
    rows = tokenizer.encode([prompt, re.sub(r"\w+\W*$", "", prompt)])
    full = np.argmax(rows[0] == tokenizer.eos_token_id) == rows.shape[1] - 1
    return bool(full and np.array_equal(*rows))


def describe(frames: np.ndarray) -> dict[str, Any]:
    """Size and checksum of a video's frames [T, H, W, 3], for the sidecar."""
    count, height, width = frames.shape[:3]
    digest = hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()
    return {"frames": count, "height": height, "width": width, "frames_sha256": digest}


def summary(path: Path, frames: np.ndarray, fps: float, seconds: float) -> str:
    """The line a user reads when a video is done."""
    count, height, width = frames.shape[:3]
    return (
        f"{path}: {count} frames of {width}x{height}, {count / fps:.1f} s at {fps:g} a second; "
        f"done after {seconds:.0f} s"
    )


def compare(before: Any, now: dict[str, Any]) -> str:
    """Whether a video made from a sidecar has the frames that the sidecar recorded."""
    if before["result"].get("frames_sha256") == now["result"]["frames_sha256"]:
        return "the frames are the same as before"
    changed = [
        f"{key} {before['made_with'].get(key)} then, {value} now"
        for key, value in now["made_with"].items()
        if before["made_with"].get(key) != value
    ]
    if before.get("mv2") != version():
        changed.append(f"mv2 {before.get('mv2')} then, {version()} now")
    return f"the frames differ from before ({'; '.join(changed) or 'in rounding, or in inputs'})"


def _interpolator(bundle: Any) -> str | None:
    """The interpolator that was chosen, None where the folder's own shall serve."""
    return bundle.stages.get("vfi", {}).get("network")


def _keyframes_alone(numbers: Numbers) -> Numbers:
    """The numbers with nothing put between the keyframes, at the pace they have in the video."""
    vfi = numbers["vfi"]
    return {**numbers, "vfi": {"between": 0, "fps": vfi["fps"] / (int(vfi["between"]) + 1)}}


def _starts(
    request: Request, bundle: Any, numbers: Numbers
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The user's own picture and clip, as the stages want them."""
    picture = clip = None
    if request.image:
        picture = media.read_image(request.image.path, bundle.stages["t2i"].size)
    if request.video:
        stage = bundle.stages["v2v"]
        interval = (numbers["vfi"]["between"] + 1) / numbers["vfi"]["fps"]
        clip = media.read_video(request.video.path, stage.size, stage.frames, interval)
    return picture, clip


def _singly(made: Made, count: int) -> Iterator[Made]:
    for k in range(count):
        yield Made(*(getattr(made, f.name)[k] for f in dataclasses.fields(made)))
