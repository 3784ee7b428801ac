"""The page that `mv2 explain` writes: one HTML file with every picture inside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mv2_jax.infer import media

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 78em; padding: 0 1em;
  color: #222; background: #fff }
h1 { font-size: 1.5em; margin-bottom: .2em } h2 { font-size: 1.15em; margin: 2em 0 .3em;
  border-bottom: 1px solid #ddd } p { max-width: 60em } small, figcaption { color: #555 }
table { border-collapse: collapse } td, th { text-align: left; padding: .25em .9em .25em 0;
  vertical-align: top; border-bottom: 1px solid #eee } td.n { text-align: right }
.row { display: flex; flex-wrap: wrap; gap: .9em } figure { margin: .4em 0 } img { display: block;
  max-width: 100%; image-rendering: auto } figcaption { font-size: .87em; max-width: 14em }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd }
  small, figcaption { color: #aaa } td, th { border-color: #333 } h2 { border-color: #444 } }
"""


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole document of (heading, HTML) sections; `title` is plain text."""
    name = html.escape(title)
    body = "\n".join(f"<h2>{html.escape(head)}</h2>\n{text}" for head, text in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{name}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def text(words: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(words)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[float | str]]) -> str:
    """A table of plain text; numbers to the right."""

    def cell(value: float | str) -> str:
        number = isinstance(value, int | float)
        shown = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if number else value
        return f'<td class="n">{shown}</td>' if number else f"<td>{html.escape(str(value))}</td>"

    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = ("".join(cell(value) for value in row) for row in rows)
    return f"<table><tr>{top}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def row(figures: Sequence[str]) -> str:
    """Figures side by side, as many as fit."""
    return '<div class="row">' + "".join(figures) + "</div>"


def figure(image: np.ndarray, caption: str, width: int | None = None) -> str:
    """A picture [H, W, 3] uint8 under its caption; `width` in pixels on the page."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return _figure("image/png", buffer.getvalue(), caption, width or image.shape[1])


def animation(frames: np.ndarray, fps: float, caption: str, width: int | None = None) -> str:
    """A clip [T, H, W, 3] uint8 that plays over and over. WebP: browsers that come without H.264
    play it too."""
    buffer = io.BytesIO()
    first, *others = (Image.fromarray(frame) for frame in frames)
    options = {"save_all": True, "append_images": others, "loop": 0, "quality": 85}
    first.save(buffer, format="WEBP", duration=round(1000 / fps), **options)
    return _figure("image/webp", buffer.getvalue(), caption, width or frames.shape[2])


def strip(frames: np.ndarray, most: int = 8) -> np.ndarray:
    """Frames [T, H, W, 3] side by side, `most` of them evenly."""
    picks = np.round(np.linspace(0, len(frames) - 1, min(most, len(frames)))).astype(int)
    return np.concatenate(list(frames[picks]), axis=1)


def heat(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3] uint8 that is bright where weights [h, w] (0 to 1) are high."""
    plane = np.round(255 * np.clip(weights, 0, 1)).astype(np.uint8)
    large = media.fit(np.repeat(plane[..., None], 3, axis=-1), image.shape[:2]) / 255
    grey = image.mean(axis=-1, keepdims=True)
    dark, warm = 0.35 * grey, np.array([255.0, 190.0, 60.0])
    lit = 0.75 * image + 0.25 * warm
    return np.round(dark + large * (lit - dark)).clip(0, 255).astype(np.uint8)


def _figure(kind: str, data: bytes, caption: str, width: int) -> str:
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    said = html.escape(caption)
    return (
        f'<figure><img src="{source}" width="{width}" alt="{html.escape(caption, quote=True)}">'
        f"<figcaption>{said}</figcaption></figure>"
    )
