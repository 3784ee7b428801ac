"""Videos side by side, as one animated WebP: the README's picture.

python benchmarks/moving_picture.py VIDEOS/ OUT.webp [--side 176]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
from PIL import Image

GAP = 4  # white pixels between two videos


def frames(path: Path, side: int) -> list[Image.Image]:
    """A video's frames, [side, side]."""
    with av.open(str(path)) as container:
        decoded = (frame.to_image() for frame in container.decode(video=0))
        return [picture.resize((side, side), Image.Resampling.LANCZOS) for picture in decoded]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=176)
    args = parser.parse_args()
    videos = [frames(path, args.side) for path in sorted(args.folder.glob("*.mp4"))]
    if not videos:
        raise SystemExit(f"{args.folder} holds no .mp4")
    step = args.side + GAP
    pictures = []
    for row in zip(*videos):
        picture = Image.new("RGB", (len(row) * step - GAP, args.side), "white")
        for place, frame in enumerate(row):
            picture.paste(frame, (place * step, 0))
        pictures.append(picture)
    pictures[0].save(
        args.out,
        save_all=True,
        append_images=pictures[1:],
        duration=83,
        loop=0,
        quality=75,
        method=6,
    )


if __name__ == "__main__":
    main()
