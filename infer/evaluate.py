"""`mv2 eval toybox`: how often the cascade shows what it was asked for, on worlds it never saw.

Prompts name four-tuples of the two withheld sets in their canonical words; the judge that fits
(`toybox.sight`) looks at the T2I picture (thing, colour, scene) and at the final video (all four,
in the worst frame), and at how much of the true texture they have. True renders of the same words
are judged beside them. Rates come with Wilson's 95% intervals. What verdicts do not say (does the
video keep the picture's thing, does it flicker ...) `toybox.measures` do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mv2_jax import bundle as bundles
from mv2_jax import files, startup
from mv2_jax.errors import InputError
from mv2_jax.infer import generate, media, meshes, outputs, settings
from mv2_jax.infer.progress import Bars, Forecast

_SECONDS = 8.0
"""Of one prompt with the shipped weights on two CPU cores. A batch of four takes 38 s of CPU time,
20 of them the judge's, who looks at one picture after another."""

if TYPE_CHECKING:
    from mv2_jax.cascade import Cascade
    from mv2_jax.infer.measured import Differs, Means
    from mv2_jax.infer.settings import Numbers
    from mv2_jax.toybox.evaluate import Rate
    from mv2_jax.toybox.sight import Sight

Rates: TypeAlias = "dict[str, dict[str, Rate]]"
"""{set or "both": {kind: its rate}}."""


def withheld(count: int, seed: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Four-tuples [count, 4], half from each set; the sets' names, one a row; prompts' words."""
    from mv2_jax.toybox import captions, split

    halves = [count - count // 2, count // 2]
    tuples, names = [], []
    for which, part in zip(split.SETS, halves):
        tuples.append(split.test_tuples(which, part, seed))
        names += [which] * part
    words = np.concatenate(tuples)
    return words, names, np.array([captions.canonical(*row) for row in words])


def rates(hits: dict[str, np.ndarray], names: Sequence[str]) -> Rates:
    """The rates of right-or-wrong [count] by kind."""
    from mv2_jax.toybox.evaluate import wilson

    groups = {"both": np.ones(len(names), bool)}
    groups |= {which: np.array(names) == which for which in dict.fromkeys(names)}
    return {
        group: {kind: wilson(int(h[rows].sum()), int(rows.sum())) for kind, h in hits.items()}
        for group, rows in groups.items()
    }


def table(results: dict[str, Rates]) -> str:
    """The rates as lines of text, one for what was looked at and in which set."""
    lines = [f"{'':24}" + "".join(f"{kind:>24}" for kind in _COLUMNS)]
    for what, groups in results.items():
        for group, found in groups.items():
            cells = "".join(f"{_cell(found.get(kind)):>24}" for kind in _COLUMNS)
            lines.append(f"{what + ', ' + group:24}{cells}")
    return "\n".join(lines)


_COLUMNS = ("thing", "colour", "scene", "motion", "all", "texture")


def _cell(rate: Rate | None) -> str:
    return "-" if rate is None else f"{rate.share:.1%} ({rate.low:.1%}-{rate.high:.1%})"


def toybox(
    weights: str | None = None,
    count: int = 200,
    seed: int = 0,
    batch: int = 4,
    out: str | Path | None = None,
    mesh: str | None = None,
) -> dict[str, Rates]:
    """Generates `count` videos, prints the table, and returns its rates.

    Args:
        seed: of the choice of prompts; video i is made from seed + i.
        batch: videos made at a time.
        out: a folder for `eval.json` and `eval.png`: the first videos' pictures and six frames.
        mesh: as `--mesh` takes it. Of several processes the first writes the files and speaks.

    Raises:
        InputError: fewer than two prompts, a seed out of range, missing or damaged weights, or a
            folder that cannot be written.
    """
    if count < 2:
        raise InputError(f"--prompts is {count}; it takes at least 2, one from each set")
    if not 0 <= seed <= 2**32 - count:
        raise InputError(f"--seed is {seed}; it goes from 0 to {2**32 - count}")
    startup.loading()
    from mv2_jax.infer import measured

    first_process = meshes.begin(mesh)
    with meshes.agreed(mesh):
        if out is not None and first_process:
            _ready(Path(out))
        bundle = bundles.read(weights)
        numbers = settings.resolve({}, {}, bundle)
    words, names, prompts = withheld(count, seed)
    cascade, _ = generate.load(bundle, mesh, batch)
    started, rows = time.monotonic(), []
    tally, verdicts = measured.Tally(), Verdicts()
    with Bars(silent=not first_process) as bars:
        known = _SECONDS if bundle.folder == bundles.SHIPPED else None
        forecast = Forecast(bars.say, count, -(-count // batch), known)
        for first in range(0, count, batch):
            keep = min(batch, count - first)
            bars.prefix = f"{first + keep}/{count} "
            chosen = [int(i) for i in np.minimum(np.arange(first, first + batch), count - 1)]
            made = generate.make(
                cascade,
                [str(prompts[i]) for i in chosen],
                numbers,
                seed=[seed + i for i in chosen],
                progress=bars,
            )
            picks = np.linspace(0, made.frames.shape[1] - 1, 6).round().astype(int)
            first_column = media.fit_all(made.picture[:keep], made.frames.shape[2:4])[:, None]
            rows.extend(np.concatenate([first_column, made.frames[:keep, picks]], axis=1))
            asked = words[first : first + keep]
            true = tally.add(made.frames[:keep], made.picture[:keep], asked)
            verdicts.add(made.picture[:keep], made.frames[:keep], true, asked)
            forecast.done()
        differs = _spread(cascade, numbers, prompts, words, batch)
    hits = verdicts.right()
    results = {what: rates(found, names) for what, found in hits.items()}
    if first_process:
        print(table(results))
        print(measured.table(tally.means(), differs))
        print(f"{count} prompts in {time.monotonic() - started:.0f} s")
        if out is not None:
            extra = {"measures": _plain(tally.means()), "seeds": differs}
            extra |= {"judge": verdicts.numbers()}
            _write(Path(out), results, prompts, hits, rows, extra)
    meshes.end(mesh)
    return results


def _spread(
    cascade: Cascade, numbers: Numbers, prompts: np.ndarray, words: np.ndarray, batch: int
) -> Differs:
    """How much seeds differ, over one prompt in sixteen, six at most."""
    from mv2_jax.diffusion import keys
    from mv2_jax.infer import measured

    def picture(texts: list[str], seeds: list[int]) -> np.ndarray:
        given: dict[str, Any] = {"negative": "", "keys": keys.seeds(seeds), **numbers["t2i"]}
        return media.to_uint8(cascade.t2i(texts, **given))

    count = max(1, min(6, len(prompts) // 16))
    chosen = np.linspace(0, len(prompts) - 1, count).astype(int)
    size = cascade.picture.stage.size
    return measured.spread(picture, prompts[chosen].tolist(), words[chosen], size, batch)


def _plain(means: Means) -> dict[str, dict[str, dict[str, float] | None]]:
    return {k: {w: m and m._asdict() for w, m in found.items()} for k, found in means.items()}


class Verdicts:
    """The judge's words on pictures, videos and true renders, added up batch by batch."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Sight]] = {}

    def add(
        self, pictures: np.ndarray, videos: np.ndarray, true: np.ndarray, words: np.ndarray
    ) -> None:
        """Judges pictures [B, H, W, 3], videos and true clips [B, T, H, W, 3] of `words` [B, 4]."""
        from mv2_jax.toybox import sight

        looked = {"image": pictures[:, None], "video": videos}
        looked |= {"true image": true[:, :1], "true video": true}
        for what, clips in looked.items():
            self._parts.setdefault(what, []).append(sight.judge(clips, words))

    def right(self) -> dict[str, dict[str, np.ndarray]]:
        """{what was looked at: {kind: right or wrong [N]}}."""
        return {what: _joined([p.right for p in parts]) for what, parts in self._parts.items()}

    def numbers(self) -> dict[str, dict[str, list[float | None]]]:
        """{what was looked at: {number of the judge's: one for each prompt}}, for a file."""
        return {
            what: {
                name: [round(float(v), 5) if np.isfinite(v) else None for v in values]
                for name, values in _joined([p.numbers for p in parts]).items()
            }
            for what, parts in self._parts.items()
        }


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _ready(folder: Path) -> None:
    """Makes the folder, and finds out now whether it can be written."""
    with outputs.told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    outputs.check(folder / "eval.json")


def _write(
    folder: Path,
    results: dict[str, Rates],
    prompts: np.ndarray,
    hits: dict[str, dict[str, np.ndarray]],
    rows: list[np.ndarray],
    extra: Mapping[str, object],
) -> None:
    report = {
        **extra,
        "rates": {
            what: {g: {k: r._asdict() for k, r in f.items()} for g, f in groups.items()}
            for what, groups in results.items()
        },
        "prompts": [
            {"prompt": str(prompt), **{k: bool(h[i]) for k, h in hits["video"].items()}}
            for i, prompt in enumerate(prompts)
        ],
    }
    with files.whole(folder / "eval.json") as scratch:
        scratch.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sheet = np.stack(rows[:16])
    media.write_image(folder / "eval.png", _grid(sheet))


def _grid(clips: np.ndarray) -> np.ndarray:
    """Clips [n, T, H, W, 3] as rows of one picture, halved in size."""
    small = clips[:, :, ::2, ::2]
    return np.concatenate([np.concatenate(list(clip), axis=1) for clip in small], axis=0)
