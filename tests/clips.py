"""Small videos for tests of `mv2 interpolate`, and what is in a video."""

from fractions import Fraction

import av
import numpy as np
from PIL import Image


def pan(count, height=48, width=64, step=2, seed=0):
    """[count, height, width, 3]: a textured ground that moves left."""
    random = np.random.default_rng(seed)
    long = width + step * count
    cells = random.integers(30, 225, size=(height // 8 + 1, long // 8 + 1, 3), dtype=np.uint8)
    ground = np.asarray(Image.fromarray(cells).resize((long, height), Image.Resampling.BICUBIC))
    return np.stack([ground[:, k * step : k * step + width] for k in range(count)])


def stored(path, decoder=None):
    """(names of pixel formats, lists of plane bytes): the frames as they are decoded."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = av.CodecContext.create(decoder, "r") if decoder else stream.codec_context
        frames = []
        for packet in container.demux(stream):
            frames += context.decode(packet if packet.size else None)
        return [f.format.name for f in frames], [samples(f) for f in frames]


def samples(frame):
    """A frame's planes without what fills its rows."""
    made = []
    for k, plane in enumerate(frame.planes):
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        parts = [c for c in frame.format.components if c.plane == k]
        each = sum(-(-c.bits // 8) for c in parts) + (frame.format.name == "bgr0")
        made.append(rows[:, : plane.width * each].copy())
    return made


def encode(path, pixels, codec="libx264", form="yuv420p", fps=10, container=None, **options):
    """Writes [T, H, W, 3] as a video, lossless for x264, x265, VP9 and FFV1."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], form
        lossless = {"libx264": {"qp": "0"}, "libx265": {"x265-params": "lossless=1:log-level=none"},
                    "libvpx-vp9": {"lossless": "1", "auto-alt-ref": "0"}}  # fmt: skip
        stream.options = {**lossless.get(codec, {}), **options}
        if codec == "libvpx-vp9" and "a" in form:
            stream.metadata["alpha_mode"] = "1"
        for k, picture in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=form, threads=1)
            if "yuva" in form:  # swscale makes it opaque
                alpha = np.frombuffer(frame.planes[3], np.uint8).copy()
                alpha[:] = np.arange(alpha.size) % 256
                frame.planes[3].update(alpha)
            frame.pts = k
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def shown(path):
    """(seconds, seconds on show) of each picture."""
    with av.open(str(path)) as container:
        found = [(p.pts * p.time_base, (p.duration or 0) * p.time_base)
                 for p in container.demux(video=0) if p.size]  # fmt: skip
        return sorted(found), Fraction(container.duration, av.time_base)


def crowded(path):
    """A Matroska file with sound, two subtitles, a font, chapters and names."""
    encode("plain.mkv", pan(10))
    with av.open("plain.mkv") as given, av.open(str(path), "w") as out:
        video = out.add_stream_from_template(given.streams.video[0], opaque=True)
        voice = out.add_stream("aac", rate=16000, layout="mono")
        voice.metadata["language"] = "fra"
        voice.disposition = 1 | 4  # default, original
        first = out.add_mux_stream("subrip")
        first.metadata.update(language="ger", title="Deutsch")
        first.disposition = 64  # forced
        out.add_attachment("font.ttf", "application/x-truetype-font", b"letters" * 100)
        out.metadata.update(title="A film", artist="Me")
        out.set_chapters([
            {"id": 1, "start": 0, "end": 400, "time_base": Fraction(1, 1000),
             "metadata": {"title": "one"}},
            {"id": 2, "start": 400, "end": 1000, "time_base": Fraction(1, 1000),
             "metadata": {"title": "two"}},
        ])  # fmt: skip
        for packet in given.demux():
            if packet.size:
                packet.stream = video
                out.mux(packet)
        tone = np.sin(np.arange(16000) / 9).astype(np.float32)[None] / 2
        audio = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        audio.sample_rate, audio.pts, audio.time_base = 16000, 0, Fraction(1, 16000)
        out.mux([*voice.encode(audio), *voice.encode()])
        for text, start in ((b"hello", 100), (b"<i>there</i>", 600)):
            packet = av.Packet(text)
            packet.stream, packet.time_base = first, Fraction(1, 1000)
            packet.pts = packet.dts = start
            packet.duration = 300
            out.mux(packet)
    return path
