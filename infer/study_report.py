"""The table and the strip of `mv2 study`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mv2_jax import files
from mv2_jax.infer import media
from mv2_jax.toybox import intervals

VERDICTS = ("picture", "thing", "colour", "scene", "motion", "all")
SHARES = (*VERDICTS, "one thing")  # shown in percent
SAYS = {
    "picture": "T2I's picture shows the asked thing, colour and scene (the judge)",
    "thing, colour, scene, motion, all": "the final video shows them (the judge)",
    "picture's surety, surety": "sum of the log-probabilities that the judge gives the asked words",
    "one thing": "share of frames that show exactly one thing",
    "kept colour": "CIE76 difference of the thing's colour from that in the picture",
    "kept shape": "difference of the thing's outline from that in the picture, 0 to 1",
    "kept place": "how far the first frame's thing is from where the picture has it, in % of the "
    "frame's height",
    "kept size": "difference of the first frame's thing's size from that in the picture, in %",
    "flicker": "what comes and goes in the scene, in grey levels of 255",
    "jerk": "changes of the thing's pace, in % of the frame's height",
    "sharpness": "fine detail, in grey levels of 255",
}

_FEWEST = 8  # pairs; an interval over fewer means nothing
Values = Mapping[str, Mapping[str, np.ndarray]]


def compare(values: Values, names: Sequence[str]) -> dict[str, Any]:
    """{variant: {measure: {"mean", "difference": Mean or None, "p" of verdicts}}} against the
    first of `names`; None where no pair has anything to say."""
    base = values[names[0]]
    out: dict[str, Any] = {}
    for name in names:
        out[name] = {}
        for measure, after in values[name].items():
            before, known = base[measure], np.isfinite(after)
            cell: dict[str, Any] = {"mean": float(after[known].mean()) if known.any() else None}
            if name != names[0]:
                pairs = np.isfinite(after - before).any()
                cell["difference"] = intervals.paired(after, before) if pairs else None
                if measure in VERDICTS:
                    right = after > 0.5, before > 0.5
                    cell["difference"] = intervals.paired_rates(*right)
                    cell["p"] = intervals.mcnemar(*right)
            out[name][measure] = cell
    return out


def markdown(compared: Mapping[str, Any], names: Sequence[str], count: int) -> str:
    """The table: values of the first variant, of the others differences from it."""
    measures = list(compared[names[0]])
    lines = [
        f"| {count} videos each | " + " | ".join(measures) + " |",
        "|---" * (len(measures) + 1) + "|",
    ]
    for name in names:
        cells = [_cell(measure, compared[name][measure]) for measure in measures]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    notes = [f"- {name}: {said}." for name, said in SAYS.items()]
    return "\n".join(
        [
            *lines,
            "",
            f'The first row is "{names[0]}"; every other is its difference from it on the same '
            "prompts and seeds, with its 95% interval (Newcombe's for the judge's verdicts, "
            "Student's for the rest). **Bold**: the interval leaves out 0; about one cell in "
            "twenty does, were there no effect at all. Shares are in percent, and their "
            "differences in points.",
            "",
            *notes,
            "",
        ]
    )


def _cell(measure: str, cell: Mapping[str, Any]) -> str:
    scale, digits = (100, 0) if measure in SHARES else (1, 2)
    if "difference" not in cell:
        return "-" if cell["mean"] is None else f"{scale * cell['mean']:.{digits}f}"
    found = cell["difference"]
    if found is None:
        return "-"
    mean, low, high = (scale * value for value in found[:3])
    if found.count < _FEWEST:
        return f"{mean:+.{digits}f} ({found.count} pairs)"
    text = f"{mean:+.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
    return text if found.none else f"**{text}**"


def strip(rows: np.ndarray, names: Sequence[str], prompt: str) -> np.ndarray:
    """Videos [variants, T, H, W, 3], a row each beside its name, under the prompt."""
    count, frames, height, width, _ = rows.shape
    label, top = 210, 24
    sheet = Image.new("RGB", (label + frames * (width + 2), top + count * (height + 2)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text((6, 4), prompt, fill="black", font=font)
    for i, (name, clip) in enumerate(zip(names, rows)):
        y = top + i * (height + 2)
        draw.text((6, y + height // 2 - 8), name, fill="black", font=font)
        for j, frame in enumerate(clip):
            sheet.paste(Image.fromarray(frame), (label + j * (width + 2), y))
    return np.asarray(sheet)


def write(out: Path, values: Values, names: Sequence[str], rows: np.ndarray, prompt: str) -> None:
    """study.md, study.json and study.png in `out`; the table is printed too."""
    compared = compare(values, names)
    count = len(next(iter(values[names[0]].values())))
    text = markdown(compared, names, count)
    print(text)
    plain = {
        name: {
            measure: {k: v._asdict() if isinstance(v, intervals.Mean) else v for k, v in c.items()}
            for measure, c in cells.items()
        }
        for name, cells in compared.items()
    }
    with files.whole(out / "study.md") as scratch:
        scratch.write_text(text, encoding="utf-8")
    with files.whole(out / "study.json") as scratch:
        scratch.write_text(json.dumps({"videos": count, "variants": plain}, indent=1) + "\n")
    media.write_image(out / "study.png", strip(rows, names, prompt))
