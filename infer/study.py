"""`mv2 study`: what each mechanism is worth, on the same prompts and seeds with and without it.

    mv2 study inference            # mechanisms switched and varied over given weights
    mv2 study training             # I2V trained with and without each, at equal small budgets
    mv2 study preference           # after Diffusion-DPO, and after fine-tuning on the winners

Prompts are of withheld worlds. Every variant makes every video, so differences are paired; their
intervals are 95%, and verdicts are tested by McNemar's exact test too. Each variant's batches are
kept as they are done: the same command goes on where a study was cut, and one that asks for more
variants makes only those.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mv2_jax import bundle as bundles
from mv2_jax import config, files, params, startup
from mv2_jax.arguments import Parser
from mv2_jax.errors import InputError
from mv2_jax.infer import meshes, settings

if TYPE_CHECKING:
    from mv2_jax.bundle import Bundle

FRAMES = 6  # of a video on the strip
_SECONDS = 2.5  # of one video with the shipped weights on two CPU cores


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 study`; returns the exit code.

    Raises:
        InputError: a bad flag, an unknown mechanism, missing weights.
    """
    parser = Parser(prog="mv2 study", description=_ABOUT)
    add = parser.add_argument
    add("which", choices=("inference", "training", "preference"), help="what to compare")
    add("--only", default="", metavar="A,B", help="mechanisms of `inference`, such as prior,vfi")
    add(
        "--prompts",
        type=int,
        default=40,
        metavar="N",
        help="number of prompts, all withheld (40; 2 or more)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed that chooses the prompts (0; 0 to 4294967295)",
    )
    add("--batch", type=int, default=4, metavar="N", help="videos sampled together (4; 1 or more)")
    add(
        "--steps",
        type=int,
        metavar="N",
        help="training steps of each arm (the recipe's; 1 or more)",
    )
    add("--mesh", metavar="AXES", help=meshes.HELP)
    add("--judge", metavar="FILE", help="judge to use: its file, or a phase's weights")
    add("--weights", metavar="DIR", help="a cascade folder (the shipped one)")
    add("--runs", default="runs", metavar="DIR", help="folder of all training runs (runs)")
    add("-o", "--out", metavar="DIR", help="folder to write to (study-WHICH)")
    args = parser.parse_args(list(arguments))
    if args.which == "preference" and not args.judge:
        raise InputError(
            "a preference is not to be reported by the judge that ranked the pairs: train another "
            "with `mv2 train toybox/second_judge` and name its weights folder with --judge"
        )
    if args.prompts < 2 or args.batch < 1:
        raise InputError("--prompts is at least 2 and --batch at least 1")
    if not 0 <= args.seed <= 2**32 - args.prompts:
        raise InputError(f"--seed is {args.seed}; it goes from 0 to {2**32 - args.prompts}")
    if args.steps is not None and args.steps < 1:
        raise InputError(f"--steps is {args.steps}; it is at least 1")
    meshes.of(args.mesh)  # what does not fit is said before arms are trained
    bundle = bundles.read(args.weights)
    startup.loading()
    from mv2_jax.infer import mechanisms, study_arms
    from mv2_jax.train import needs

    out = Path(args.out or f"study-{args.which}")
    only = [name for name in args.only.split(",") if name]
    if args.which == "inference":
        _writable(out)
        variants, others = (mechanisms.FULL, *mechanisms.choose(mechanisms.VARIED, only)), None
    elif only:
        raise InputError("--only goes with `mv2 study inference`")
    else:
        # Training takes hours: what would stop the study after it is told before.
        needs.check(f"mv2 study {args.which}")
        _jury(args.judge)
        _writable(out)
        trained = study_arms.train(args.which, bundle, Path(args.runs), args.steps)
        if trained is None:
            return 130
        variants, others = study_arms.variants(args.which), trained
    given = (args.prompts, args.seed, args.batch, args.judge, args.mesh)
    run(bundle, variants, out, others, *given)
    return 0


_ABOUT = (
    "Makes the same videos with and without each mechanism, and writes a table of paired "
    "differences with their 95% intervals (study.md, study.json) and a strip (study.png)."
)


def run(
    bundle: Bundle,
    variants: Sequence[Any],
    out: Path,
    others: Any = None,
    count: int = 40,
    seed: int = 0,
    batch: int = 4,
    judge: str | None = None,
    mesh: str | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Makes and measures every video of a study, and writes its table and strip into `out`.

    Args:
        variants: what to compare; the first is what the others are compared with.
        others: {arm: {stage: components}} of trained arms, see `study_arms`.
        seed: of the choice of prompts; video i is made from seed + i.
        mesh: as `--mesh` takes it, over the devices of one process.

    Returns:
        {variant's name: {measure: [count]}}; nan where a measure has nothing to say.
    """
    from mv2_jax.infer import evaluate, generate, mechanisms, study_arms, study_report
    from mv2_jax.infer.progress import Bars, Forecast

    jury = _jury(judge)
    words, _, prompts = evaluate.withheld(count, seed)
    numbers = settings.resolve({}, {}, bundle)
    cascade, _ = generate.load(bundle, mesh, batch)
    idle = {stage: cascade.idle(stage) for stage in numbers}
    variants, same = mechanisms.telling(variants, numbers, idle)
    for line in same:
        print(f"mv2: left out: {line}", file=sys.stderr)
    if same and len(variants) < 2:
        raise InputError("there is nothing to compare: with these weights all variants are one")
    arms = study_arms.cascades(cascade, others or {})
    judged = [params.digest(jury.params), config.to_dict(jury.cfg)]
    facts = [bundle.digest, numbers, study_arms.digest(others or {}), judged, [*study_report.SAYS]]
    parts: list[dict[str, dict[str, list[float]]]] = []
    (out / "parts").mkdir(parents=True, exist_ok=True)
    with Bars() as bars:
        known = _SECONDS if bundle.folder == bundles.SHIPPED else None
        samples, turns = count * len(variants), -(-count // batch)
        forecast = Forecast(bars.say, samples, turns, known)
        for first in range(0, count, batch):
            chosen = [min(i, count - 1) for i in range(first, first + batch)]
            seeds, texts = [seed + i for i in chosen], [str(prompts[i]) for i in chosen]
            paths = {
                v.name: out / "parts" / f"{first:05d}-{_print([*facts, seeds, texts], v)}.json"
                for v in variants
            }
            missing = [v for v in variants if not paths[v.name].is_file()]
            if missing:
                bench = mechanisms.Bench(cascade, texts, seeds, numbers, "", bars, arms, idle)
                bars.prefix = f"{min(first + batch, count)}/{count} "
                _one(bench, missing, words[chosen], min(batch, count - first), jury, paths)
            forecast.done(bool(missing))
            parts.append({name: json.loads(path.read_text()) for name, path in paths.items()})
            if first == 0:
                rows = np.stack([np.load(path.with_suffix(".npy")) for path in paths.values()])
    values = {
        variant.name: {
            name: np.concatenate([np.array(part[variant.name][name], float) for part in parts])
            for name in parts[0][variant.name]
        }
        for variant in variants
    }
    names = [variant.name for variant in variants]
    study_report.write(out, values, names, rows, str(prompts[0]))
    return values


def _writable(folder: Path) -> None:
    """Makes the folder of a study's files.

    Raises:
        InputError: it cannot be made, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"-o {folder}: nothing can be written there ({error.strerror})") from None


def _jury(path: str | None) -> Any:
    """The judge that ships, one in a safetensors file, or one in a finished phase's weights.

    Raises:
        InputError: there is none, or it is damaged.
    """
    from mv2_jax.toybox import evaluate, examine

    if path is None:
        return evaluate.load()
    if Path(path).is_dir():
        try:
            return examine.from_phase(Path(path))[0]
        except (OSError, ValueError, KeyError):
            said = "a finished phase's weights have phase.json and a judge"
            raise InputError(f"--judge {path} holds no judge: {said}") from None
    return evaluate.load(path)


def _print(facts: list[Any], variant: Any) -> str:
    """Letters that change with anything that one variant's batch depends on."""
    of_variant = [variant.changes, sorted(variant.skip), variant.weights]
    text = json.dumps([facts, of_variant], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _one(
    bench: Any, variants: Any, words: np.ndarray, keep: int, jury: Any, paths: dict[str, Path]
) -> None:
    """Makes, measures and keeps one batch in these variants, a .json and a .npy each."""
    for variant in variants:
        made, path = bench.make(variant), paths[variant.name]
        found = {
            name: [None if np.isnan(v) else float(v) for v in values]
            for name, values in measured(made, words, keep, jury).items()
        }
        picks = np.round(np.linspace(0, made.frames.shape[1] - 1, FRAMES)).astype(int)
        with files.whole(path.with_suffix(".npy")) as scratch, scratch.open("wb") as file:
            np.save(file, made.frames[0, picks, ::2, ::2])
        with files.whole(path) as scratch:
            scratch.write_text(json.dumps(found))


def measured(made: Any, words: np.ndarray, keep: int, jury: Any) -> dict[str, np.ndarray]:
    """{name: [keep]} of the first `keep` videos of a batch: verdicts (1 right, 0 wrong), how sure
    they are, and measures; `study_report.SAYS` explains them.
    """
    from mv2_jax.toybox import evaluate, measures
    from mv2_jax.toybox.judge import PICTURED

    words, frames, pictures = words[:keep], made.frames[:keep], made.picture[:keep]
    of_picture, of_video = (evaluate.judge(jury, clip) for clip in (pictures[:, None], frames))
    stills, verdicts = evaluate.right(of_picture, words), evaluate.right(of_video, words)
    known = measures.measure(frames, pictures, words)
    renamed = {name: f"kept {name}" for name in ("colour", "shape", "place", "size")}
    renamed["thing"] = "one thing"
    return {
        "picture": np.logical_and.reduce([stills[kind] for kind in PICTURED]).astype(float),
        **{kind: hits.astype(float) for kind, hits in verdicts.items()},
        "picture's surety": evaluate.surety(of_picture, words, PICTURED),
        "surety": evaluate.surety(of_video, words),
        **{renamed.get(name, name): values for name, values in known.items()},
    }
