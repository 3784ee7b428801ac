"""How good the storybox's judge is: true frames, and the same frames spoilt.

    python benchmarks/storybox_judging.py --count 40

Frames are of withheld worlds at random times. Spoilt ones are told apart where the verdict that is
to fail does: another drawing in the thing's place (of the same group), the thing left out, a melted
outline, what is behind in front, the second thing on the other side, another scene.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax.storybox import fit, renderer, sight, split
from mv2_jax.storybox.vocabulary import CATALOGUE, NOTHING
from mv2_jax.storybox.world import BEHIND, LEFT_OF, poses, sample_world

SIZE = (128, 128)


def draw(words, seed):
    """Frames [N, H, W, 3] of these words, and their worlds and times."""
    each = jax.random.split(jax.random.key(seed), len(words))
    worlds = jax.vmap(sample_world)(each, jnp.asarray(words))
    times = np.random.default_rng(seed).random(len(words)).astype(np.float32)
    frames = [
        np.asarray(renderer.render(jax.tree.map(lambda leaf, i=i: leaf[i], worlds),
                                   jnp.asarray(times[i : i + 1]), SIZE))[0]
        for i in range(len(words))
    ]  # fmt: skip
    return np.stack(frames), worlds, times


def other_of_its_group(words, rng):
    """Words with another first thing of the same group."""
    words = words.copy()
    for row in words:
        group = CATALOGUE[row[0]].group
        row[0] = rng.choice(
            [i for i, t in enumerate(CATALOGUE) if t.group == group and i not in (row[0], row[6])]
        )
    return words


def melted(frames, rng):
    """Bent by a smooth random field."""
    count, height, width, _ = frames.shape
    field = jax.image.resize(
        rng.normal(0, 7.0, (count, 2, 7, 7)), (count, 2, height, width), "cubic"
    )
    rows, columns = np.mgrid[:height, :width]
    y = np.clip(np.round(rows + np.asarray(field)[:, 0]), 0, height - 1).astype(int)
    x = np.clip(np.round(columns + np.asarray(field)[:, 1]), 0, width - 1).astype(int)
    return np.stack([frame[a, b] for frame, a, b in zip(frames, y, x)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="frames of each sort")
    count, seed = parser.parse_args().count, 0
    rng = np.random.default_rng(seed)
    half = (count + 1) // 2
    words = np.concatenate([split.test_words("acts", half), split.test_words("pairs", half)])[
        :count
    ]
    pairs = split.test_words("pairs", count, seed=1)
    hiding, beside = pairs.copy(), pairs.copy()
    hiding[:, 7], beside[:, 7] = BEHIND, rng.integers(2, size=count)
    true, worlds, times = draw(words, seed)
    sorts = {
        "true": (true, words, ""),
        "true, hiding": (draw(hiding, seed)[0], hiding, ""),
        "another drawing": (draw(other_of_its_group(words, rng), seed)[0], words, "thing"),
        "melted": (melted(true, rng), words, "thing"),
    }
    gone = worlds._replace(x=worlds.x + 40.0, second=jnp.full_like(worlds.second, NOTHING))
    frames = [
        np.asarray(renderer.render(jax.tree.map(lambda leaf, i=i: leaf[i], gone),
                                   jnp.asarray(times[i : i + 1]), SIZE))[0]
        for i in range(count)
    ]  # fmt: skip
    sorts["left out"] = (np.stack(frames), words, "thing")
    flipped = beside.copy()
    flipped[:, 7] = LEFT_OF + (beside[:, 7] == LEFT_OF)
    sorts["other side"] = (draw(flipped, seed)[0], beside, "relation")
    elsewhere = words.copy()
    elsewhere[:, 2] = (words[:, 2] + 1 + rng.integers(7, size=count)) % 8
    sorts["another scene"] = (draw(elsewhere, seed)[0], words, "scene")
    for name, (frames, asked, kind) in sorts.items():
        seen = sight.look(frames, asked)
        if kind:
            print(f"{name}: told apart {(~seen.right[kind]).sum()} of {count}", flush=True)
        else:
            told = {kind: int(right.sum()) for kind, right in seen.right.items()}
            print(f"{name}: right {told} of {count}", flush=True)
        for number, values in seen.numbers.items():
            low, middle, high = np.nanquantile(values, (0.05, 0.5, 0.95)) if (
                ~np.isnan(values)).any() else (np.nan,) * 3  # fmt: skip
            print(f"    {number}: {low:.4f} {middle:.4f} {high:.4f}", flush=True)
        if name == "true":
            placed(seen.found, worlds, times)


def placed(found: fit.Fit, worlds, times) -> None:
    """How far fitted poses are from the true ones."""
    true = jax.vmap(poses)(worlds, jnp.asarray(times))
    off = np.hypot(found.x - true.x, found.y - true.y)[:, 0]
    size = np.abs(np.log2(found.radius / np.asarray(true.radius)))[:, 0]
    print(f"    place off by {np.median(off):.4f} half heights (median), {(off < 0.02).mean():.0%} "
          f"within 0.02; size by {np.median(size):.4f} octaves")  # fmt: skip


if __name__ == "__main__":
    main()
