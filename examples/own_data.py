"""A data source of one's own: a folder of pictures, each with its captions, a line each, beside it.

PYTHONPATH=examples mv2 train my_recipe.py --set data.source=own_data:Folder data.root=pictures
"""

from pathlib import Path
from typing import ClassVar

import numpy as np

from mv2_jax.errors import InputError
from mv2_jax.infer import media
from mv2_jax.text import WordTokenizer
from mv2_jax.train.source import Source


class Folder(Source):
    """The .png files under `data.root`; a picture's captions are the lines of its .txt file."""

    settings: ClassVar = dict.fromkeys(("clips", "pictures", "triplets"), ("root",))

    def __init__(self, data, seed):
        super().__init__(data, seed)
        self.paths = sorted(Path(data["root"]).glob("*.png"))
        if not self.paths:
            raise InputError(f"data.root: there is no .png file in {data['root']}")
        self.length = len(self.paths)
        self.lines = [path.with_suffix(".txt").read_text().splitlines() for path in self.paths]

    def facts(self):
        """What latents are kept under: other files make other ones."""
        return {"files": [[path.name, path.stat().st_size] for path in self.paths]}

    def read(self, numbers, frames, size):
        """Stills: the picture in every frame."""
        pictures = np.stack([media.read_image(self.paths[n], size) for n in numbers])
        clips = np.repeat(np.float32(pictures)[:, None] / 127.5 - 1, frames, axis=1)
        return clips, {"number": np.asarray(numbers, np.int32)}

    def captions(self, notes, seed, step):
        """One of each picture's lines, another in every step."""
        random = np.random.default_rng([seed, step])
        return [str(random.choice(self.lines[number])) for number in notes["number"]]

    def tokenizer(self, max_length):
        """For a text encoder that is trained from scratch; else its own tokenizer is taken."""
        words = {word for lines in self.lines for line in lines for word in line.split()}
        return WordTokenizer(sorted(words), max_length=max_length)
