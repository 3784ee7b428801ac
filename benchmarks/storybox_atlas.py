"""Draws the storybox's atlas from two packages of icons (both openly licensed), once.

    npm pack @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6
    pip install resvg-py
    python benchmarks/storybox_atlas.py NOTO.tgz FLUENT.tgz

writes mv2_jax/storybox/atlas/: atlas.webp (the drawings, lossless), atlas.json (which is which, and
where they are from) and the licences' texts. --sheet also writes a contact sheet to look at.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

import mv2_jax
from mv2_jax.storybox.vocabulary import CATALOGUE, PROPS, STYLES, THINGS

FOLDER = Path(mv2_jax.__file__).parent / "storybox" / "atlas"
SIDE, MARGIN, COLUMNS = 128, 2, 16
WANTED = {
    "rounded": ("@iconify-json/noto", "1.2.9", "Apache-2.0"),
    "flat": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT"),
}


def package(path: Path, name: str, version: str, licence: str) -> tuple[dict, dict]:
    """The icons of a package's archive, and what it says of itself; refuses another package."""
    with tarfile.open(path) as archive:
        read = {
            file: json.load(archive.extractfile(f"package/{file}.json"))
            for file in ("icons", "info", "package")
        }
    said = (read["package"]["name"], read["package"]["version"], read["info"]["license"]["spdx"])
    if said != (name, version, licence):
        raise SystemExit(f"{path} is {said}, not {(name, version, licence)}")
    return read["icons"], read["info"]


def drawn(icons: dict, name: str) -> np.ndarray:
    """One icon, [SIDE, SIDE, 4] uint8: cropped, centred, its longer side filled."""
    icon = icons["icons"][name]
    width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="768" height="768">{icon["body"]}</svg>'
    )
    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    picture = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())
    scale = (SIDE - 2 * MARGIN) / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    # Colours are weighed by how much they cover, or what is transparent darkens the outline.
    picture = picture.convert("RGBa").resize(size, Image.Resampling.BOX).convert("RGBA")
    whole = Image.new("RGBA", (SIDE, SIDE))
    whole.paste(picture, tuple((SIDE - side) // 2 for side in size))
    return np.asarray(whole)


def sheet(sprites: np.ndarray, columns: int, side: int = SIDE) -> Image.Image:
    """Sprites [N, SIDE, SIDE, 4] in a grid, row by row."""
    rows = -(-len(sprites) // columns)
    filled = np.zeros((rows * columns, SIDE, SIDE, 4), np.uint8)
    filled[: len(sprites)] = sprites
    grid = filled.reshape(rows, columns, SIDE, SIDE, 4).swapaxes(1, 2)
    whole = Image.fromarray(grid.reshape(rows * SIDE, columns * SIDE, 4))
    return whole.resize((columns * side, rows * side))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("noto", type=Path, help="archive of @iconify-json/noto 1.2.9")
    parser.add_argument("fluent", type=Path, help="archive of @iconify-json/fluent-emoji-flat")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    args = parser.parse_args()
    names = [*(thing.icon for thing in CATALOGUE), *PROPS]
    parts, sources = [], {}
    for style, path in zip(STYLES, (args.noto, args.fluent)):
        icons, info = package(path, *WANTED[style])
        parts.append(np.stack([drawn(icons, name) for name in names]))
        sources[style] = {
            "package": WANTED[style][0],
            "version": WANTED[style][1],
            "licence": WANTED[style][2],
            "author": info["author"]["name"],
            "source": info["author"]["url"],
        }
    FOLDER.mkdir(exist_ok=True)
    sprites = np.concatenate(parts)
    sheet(sprites, COLUMNS).save(
        FOLDER / "atlas.webp", lossless=True, quality=100, method=6, exact=False
    )
    facts = {
        "side": SIDE,
        "columns": COLUMNS,
        "names": [*THINGS, *PROPS],
        "icons": names,
        "styles": sources,
    }
    (FOLDER / "atlas.json").write_text(json.dumps(facts, indent=1) + "\n")
    if args.sheet:
        paper = sheet(sprites, COLUMNS, 80)
        white = Image.new("RGBA", paper.size, (200, 215, 225, 255))
        Image.alpha_composite(white, paper).convert("RGB").save(args.sheet)
    print(f"{len(names)} drawings in {len(STYLES)} styles, "
          f"{(FOLDER / 'atlas.webp').stat().st_size / 1e6:.2f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
