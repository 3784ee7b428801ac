"""Pictures and videos in and out: what people have, as arrays; arrays, as what browsers play.

Arrays here are uint8 RGB: pictures [H, W, 3], videos [T, H, W, 3]. Sizes are (height, width).
Every writer writes beside its target and renames, so that no partial file is ever seen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from mv2_jax import files
from mv2_jax.errors import InputError
from mv2_jax.infer import frames as video_frames

SMALLEST = 16
"""Pixels along a side below which a picture says too little to start from."""

_BT709 = 1  # the number of BT.709 in ISO/IEC 23091-2, for primaries, transfer and matrix alike
_UNNAMED = 2
_LIMITED = 1  # "tv" range, 16 to 235: what players assume of H.264
# Equal frames are to give equal files. x264's result may depend on how many threads share the
# work, so their number is fixed; and its macroblock tree was seen to vary from run to run.
_THREADS = 4
_STEADY = {"x264-params": "mbtree=0"}


def to_uint8(x: Any) -> np.ndarray:
    """Floats in [-1, 1], as networks make them, to the nearest of 256 levels."""
    x = np.asarray(x, np.float32)
    return np.round((np.clip(x, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def to_float(x: np.ndarray) -> np.ndarray:
    """uint8 to fp32 in [-1, 1]; `to_uint8` undoes it exactly."""
    return x.astype(np.float32) / 127.5 - 1.0


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scales a picture to cover `size` (Lanczos) and cuts what juts out, evenly on both sides.

    Args:
        image: [H, W, 3] uint8.

    Returns:
        [size[0], size[1], 3] uint8.
    """
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return image
    scale = min(height / size[0], width / size[1])
    kept_height, kept_width = size[0] * scale, size[1] * scale
    top, left = (height - kept_height) / 2, (width - kept_width) / 2
    box = (left, top, left + kept_width, top + kept_height)
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS, box=box)
    return np.asarray(resized)


def fit_all(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`fit` for pictures [N, H, W, 3]."""
    return np.stack([fit(image, size) for image in images])


def read_image(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> np.ndarray:
    """A picture file as [H, W, 3] uint8: turned upright by its EXIF tag, over white where clear.

    With `size`, `fit` to it.

    Raises:
        InputError: the file cannot be read, is no picture, is damaged, or is far too small or
            too large.
    """
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            pixels = _rgb(upright)
    except UnidentifiedImageError:
        raise InputError(f"cannot read {path}: it is not a picture in a known format") from None
    except Image.DecompressionBombError:
        raise InputError(f"cannot read {path}: the picture is too large") from None
    # Pillow's decoders raise many kinds of error over a damaged file.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise InputError(
            f"cannot read {path}: {_reason(error, 'the picture is damaged')}"
        ) from None
    _check_size(path, "picture", pixels.shape[:2])
    return pixels if size is None else fit(pixels, size)


def read_video(
    path: str | os.PathLike[str], size: tuple[int, int], frames: int, interval: float
) -> np.ndarray:
    """Frames of a video file, upright, square-pixelled and `fit` to `size`.

    The frames are those on show at 0, `interval`, 2 * `interval` ... seconds. A video that is
    too short for that is spread over the wanted frames evenly, from its first to its last.

    Args:
        frames: how many frames to take.
        interval: seconds between two of them.

    Returns:
        [frames, size[0], size[1], 3] uint8.

    Raises:
        InputError: the file cannot be read, holds no video, is damaged or far too small.
    """
    try:
        last = _last_time(path)
        if last < (frames - 1) * interval:
            interval = last / max(frames - 1, 1)
        taken = list(_at_times(path, size, [k * interval for k in range(frames)]))
    except (av.error.FFmpegError, OSError) as error:
        # PyAV's messages repeat the path; its errno's text is the part for people.
        raise InputError(
            f"cannot read {path}: {_reason(error, 'it is no video, or is damaged')}"
        ) from None
    return np.stack(taken)


def write_video(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    fps: float,
    about: Mapping[str, str] | None = None,
) -> None:
    """Writes an H.264 MP4 that browsers play: yuv420p, BT.709 and tagged so, index in front.

    4:2:0 needs even sides, so an odd one is lengthened by repeating its last row or column.

    Args:
        frames: [T, H, W, 3] uint8.
        fps: frames a second.
        about: metadata of the file, by key.

    Raises:
        OSError: the file cannot be written.
    """
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with files.whole(path) as scratch:
        # MP4 has no place of its own for keys that it does not know.
        options = {"movflags": "+faststart" + "+use_metadata_tags" * bool(about)}
        address = video_frames.address(scratch)
        with av.open(address, "w", format="mp4", options=options) as container:
            container.metadata.update(about or {})
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.width, stream.height = frames.shape[2], frames.shape[1]
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "14", "preset": "medium", **_STEADY}
            context = stream.codec_context
            context.thread_count = _THREADS
            context.color_primaries = context.color_trc = context.colorspace = _BT709
            context.color_range = _LIMITED
            for pixels in frames:
                container.mux(stream.encode(_yuv(pixels)))
            container.mux(stream.encode())


def write_image(
    path: str | os.PathLike[str], image: np.ndarray, about: Mapping[str, str] | None = None
) -> None:
    """Writes [H, W, 3] uint8 as PNG, with `about` as its texts. Raises OSError where the file
    cannot be written."""
    texts = PngInfo()
    for key, value in (about or {}).items():
        texts.add_itxt(key, value)
    with files.whole(path) as scratch:
        Image.fromarray(image).save(scratch, format="PNG", pnginfo=texts)


def contact_sheet(frames: np.ndarray, most: int = 24, side: int = 256) -> np.ndarray:
    """Frames side by side in reading order on white, about half as wide again as high.

    Args:
        frames: [T, H, W, 3] uint8.
        most: how many frames to show at most; of more, that many are taken evenly.
        side: the longer side of a frame on the sheet, at most; smaller ones are not enlarged.

    Returns:
        [H', W', 3] uint8.
    """
    shown = frames
    if len(frames) > most:
        shown = frames[np.round(np.linspace(0, len(frames) - 1, most)).astype(int)]
    height, width = frames.shape[1:3]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    gap = max(2, side // 64)
    columns = min(len(shown), max(1, round(math.sqrt(1.5 * len(shown) * height / width))))
    rows = math.ceil(len(shown) / columns)
    cell = (size[0] + gap, size[1] + gap)
    sheet = np.full((rows * cell[0] + gap, columns * cell[1] + gap, 3), 255, np.uint8)
    for index, frame in enumerate(shown):
        top, left = (gap + (index // columns) * cell[0], gap + (index % columns) * cell[1])
        sheet[top : top + size[0], left : left + size[1]] = fit(frame, size)
    return sheet


def _yuv(pixels: np.ndarray) -> av.VideoFrame:
    """One RGB picture as a yuv420p frame in BT.709, which swscale would not choose by itself."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.LANCZOS,
    )


def _rgb(image: Image.Image) -> np.ndarray:
    """Any mode Pillow opens as [H, W, 3] uint8."""
    if image.mode.startswith(("I", "F")):  # 16 bits and more, which convert() would clip
        levels = np.asarray(image, np.float64)
        most = levels.max(initial=0)
        top = 65535.0 if most > 255 else 1.0 if image.mode == "F" and most <= 1 else 255.0
        grey = np.clip(levels * (255.0 / top), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.has_transparency_data:
        over = Image.new("RGBA", image.size, "white")
        over.alpha_composite(image.convert("RGBA"))
        image = over
    return np.asarray(image.convert("RGB"))


def _last_time(path: str | os.PathLike[str]) -> float:
    """Seconds from the first frame to the last, from the packets alone."""
    with video_frames.opened(path) as container:
        stream = _video_stream(path, container)
        # The last one, an empty one without a time, is PyAV's own.
        packets = list(container.demux(stream))[:-1]
        if not packets:
            raise InputError(f"cannot read {path}: the video has no frames")
        # `frames` is what the file says of itself, or 0 where its format does not say.
        if len(packets) < stream.frames or any(packet.is_corrupt for packet in packets):
            raise InputError(f"cannot read {path}: the video is damaged or cut short")
        for kind in ("pts", "dts"):
            stamps = [getattr(packet, kind) for packet in packets]
            if None not in stamps:
                return float((max(stamps) - min(stamps)) * stream.time_base)
        return float(sum((p.duration or 0) * p.time_base or _step(stream) for p in packets[1:]))


def _at_times(
    path: str | os.PathLike[str], size: tuple[int, int], times: Sequence[float]
) -> Iterator[np.ndarray]:
    """The frame on show at each of the ascending `times`, counted from the first frame."""
    wanted = list(times)
    shown: np.ndarray | None = None
    with video_frames.opened(path) as container:
        stream = _video_stream(path, container)
        stream.thread_type = "AUTO"
        step, now, first = _step(stream), None, None
        previous: av.VideoFrame | None = None
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise InputError(f"cannot read {path}: the video is damaged")
            now = video_frames.time_of(frame, stream, now, step) or Fraction(0)
            first = now if first is None else first
            # Half a millisecond of grace: rounded time stamps must not show the frame before.
            while previous is not None and wanted and float(now - first) > wanted[0] + 5e-4:
                wanted.pop(0)
                shown = _upright(path, previous, stream, size)
                yield shown
            if not wanted:
                return
            previous = frame
        if previous is None:
            raise InputError(f"cannot read {path}: the video has no frames")
        shown = _upright(path, previous, stream, size)
        for _ in wanted:
            yield shown


def _step(stream: Any) -> Fraction:
    """Seconds between two frames, on average."""
    return 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)


def _video_stream(path: str | os.PathLike[str], container: Any) -> Any:
    if not container.streams.video:
        raise InputError(f"cannot read {path}: there is no video in it")
    return container.streams.video[0]


def _upright(
    path: str | os.PathLike[str], frame: av.VideoFrame, stream: Any, size: tuple[int, int]
) -> np.ndarray:
    """RGB pixels as `rgb` gives them, fitted to `size`."""
    _check_size(path, "video", (frame.height, frame.width))
    return fit(rgb(frame, stream), size)


def rgb(frame: av.VideoFrame, stream: Any) -> np.ndarray:
    """A decoded frame as [H, W, 3] uint8, turned as the file asks, its pixels made square."""
    # A video that does not name its matrix is BT.709 by custom if it is HD; swscale says BT.601.
    unnamed_hd = frame.colorspace == _UNNAMED and min(frame.height, frame.width) >= 720
    source = Colorspace.ITU709 if unnamed_hd else None
    pixels = frame.reformat(format="rgb24", src_colorspace=source).to_ndarray()
    if video_frames.is_grey(frame.format) and frame.color_range == _LIMITED:
        pixels = to_uint8(2.0 * (pixels - np.float32(16)) / 219 - 1.0)
    aspect = float(stream.sample_aspect_ratio or 1)
    if aspect > 0 and abs(aspect - 1) > 1e-3:
        wide = (frame.height, max(1, round(frame.width * aspect)))
        pixels = np.asarray(Image.fromarray(pixels).resize(wide[::-1], Image.Resampling.LANCZOS))
    turned = video_frames.upright(pixels, *video_frames.turns_of(frame))
    return np.ascontiguousarray(turned)


def _check_size(path: str | os.PathLike[str], what: str, size: tuple[int, ...]) -> None:
    if min(size) < SMALLEST:
        raise InputError(
            f"{path}: a {what} of {size[1]}x{size[0]} pixels is too small; {SMALLEST} a side is "
            "the least"
        )


def _reason(error: Exception, otherwise: str) -> str:
    """What the system says of a file (no such file, permission denied), or `otherwise`."""
    known = isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError))
    return os.strerror(error.errno).lower() if known and error.errno else otherwise
