"""A cascade as conversions leave it, of tiny widths, and a folder of real little clips."""

import jax
import numpy as np
import tiny
from clips import encode, pan
from PIL import Image

from mv2_jax import bundle
from mv2_jax.config import TextConfig
from mv2_jax.stages import stage
from mv2_jax.text import CLIPTokenizer

CLIP = TextConfig(width=8, layers=1, heads=2, mlp_width=16)


def text_encoder(seed=4):
    shapes = jax.eval_shape(
        lambda k: stage.Text(CLIP).init(None, k, None, None, None, {})["text_encoder"],
        jax.random.key(0),
    )
    return tiny.random(shapes, seed)


def cascade(folder, text=4):
    """A cascade folder with CLIP's tokenizer."""
    four = tiny.make()
    configs = {
        **tiny.NETWORKS,
        "vae": tiny.VAE,
        "spatial": tiny.SPATIAL,
        "motion_i2v": tiny.MOTION,
        "motion_v2v": tiny.MOTION,
        "text_encoder": CLIP,
    }
    trees = {**four.params, "text_encoder": text_encoder(text)}
    parts = {
        name: bundle.Part(trees[name], config, "Apache-2.0", "random numbers")
        for name, config in configs.items()
    }
    kept = {"t2i": tiny.PICTURE, "i2v": tiny.KEYFRAMES, "v2v": tiny.REFINED}
    defaults = {"vfi": {"between": 0}}
    words = CLIPTokenizer().to_json()
    bundle.write(folder, parts, kept, words, name="converted", defaults=defaults)
    return folder


def clips(folder, videos=4, pictures=3):
    """Videos of 20 and more frames at 8 a second and pictures, captions beside them, all written
    by FFmpeg and Pillow; `videos` and `pictures` of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(videos):
        path = folder / f"video{n}.mp4"
        encode(path, pan(20 + 4 * n, 48 + 16 * (n % 2), 64, seed=n), fps=8)
        path.with_suffix(".txt").write_text(f"clip {n}\nanother word for clip {n}\n")
    for n in range(pictures):
        path = folder / f"picture{n}.png"
        Image.fromarray(pan(1, 64, 96 - 32 * (n % 2), seed=20 + n)[0]).save(path)
        path.with_suffix(".txt").write_text(f"picture {n}")
    return folder


def frames_of(path):
    """A video's frames as FFmpeg decodes them, uint8 [T, H, W, 3]."""
    import av

    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
