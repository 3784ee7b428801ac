"""A client of `mv2 serve` with the standard library, NumPy and PyAV."""

from __future__ import annotations

import io
import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from fractions import Fraction
from typing import Any

import av
import numpy as np

_LOOK = 0.3  # seconds between two looks at a video that is being made
_ANSWER = 60.0  # seconds that an answer may take


class Failed(RuntimeError):
    """The server refused, could not make the video, or cannot be reached; the text says why."""


class Client:
    """Talks to one server.

    Args:
        server: its address, such as "http://127.0.0.1:8000".
        token: that it wants, if any.
    """

    def __init__(self, server: str, token: str | None = None) -> None:
        self._server = server.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def make(
        self,
        route: str,
        fields: Mapping[str, Any],
        files: Mapping[str, tuple[np.ndarray, float]],
        look: Callable[[dict], None] = lambda video: None,
    ) -> tuple[np.ndarray, float, str]:
        """Asks for a video and waits for it.

        Args:
            route: "/v1/videos" or "/v1/interpolations".
            fields: of the request; None leaves one out, and a mapping is an object.
            files: {field: (frames [T, H, W, 3] uint8, frames per second)}; one frame is a picture.
            look: called with the video's object until it is done. Where it raises, the video is
                deleted, which stops the work at its next step.

        Returns:
            (frames [T, H, W, 3] uint8, frames per second, the video's id).

        Raises:
            Failed: it cannot be made.
        """
        body, kind = _form(fields, files)
        video = json.loads(self._call("POST", route, body, {"Content-Type": kind}))
        path = f"/v1/videos/{video['id']}"
        try:
            while video["status"] in ("queued", "in_progress"):
                look(video)
                time.sleep(_LOOK)
                video = json.loads(self._call("GET", path))
        except BaseException:
            with suppress(Failed):
                self._call("DELETE", path)
            raise
        if video["status"] == "failed":
            raise Failed((video.get("error") or {}).get("message", "the video failed"))
        return *_decoded(self._call("GET", f"{path}/content")), video["id"]

    def _call(self, method: str, path: str, body: bytes | None = None,
              headers: Mapping[str, str] = {}) -> bytes:  # fmt: skip
        sent = {**self._headers, **headers}
        try:
            request = urllib.request.Request(self._server + path, body, sent, method=method)
            with urllib.request.urlopen(request, timeout=_ANSWER) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            said = error.read()
            with suppress(ValueError, KeyError, TypeError):
                said = json.loads(said)["error"]["message"]
            raise Failed(f"{self._server}: {said}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise Failed(
                f"{self._server} cannot be reached ({reason}); is mv2 serve running?"
            ) from None


def _form(fields: Mapping[str, Any], files: Mapping[str, tuple[np.ndarray, float]]) -> tuple:
    """(body, content type) of multipart/form-data; an object's parts are fields: mv2[i2v_steps]."""
    flat = {}
    for name, value in fields.items():
        parts = value.items() if isinstance(value, Mapping) else ((None, value),)
        flat |= {name if part is None else f"{name}[{part}]": each for part, each in parts}
    mark = secrets.token_hex(16)
    body = io.BytesIO()
    for name, value in flat.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            _part(body, mark, f'name="{name}"', text.encode())
    for name, (frames, fps) in files.items():
        suffix, content = _encoded(frames, fps)
        _part(body, mark, f'name="{name}"; filename="input.{suffix}"', content)
    body.write(f"--{mark}--\r\n".encode())
    return body.getvalue(), f"multipart/form-data; boundary={mark}"


def _part(body: io.BytesIO, mark: str, what: str, content: bytes) -> None:
    body.write(f"--{mark}\r\nContent-Disposition: form-data; {what}\r\n\r\n".encode())
    body.write(content + b"\r\n")


def _encoded(frames: np.ndarray, fps: float) -> tuple[str, bytes]:
    """A picture as PNG, a clip as lossless RGB H.264 in Matroska."""
    file = io.BytesIO()
    if len(frames) == 1:
        with av.open(file, "w", format="image2pipe") as out:
            _write(out, "png", "rgb24", frames, 1, {})
        return "png", file.getvalue()
    with av.open(file, "w", format="matroska") as out:
        _write(out, "libx264rgb", "rgb24", frames, fps, {"crf": "0", "preset": "veryfast"})
    return "mkv", file.getvalue()


def _write(
    out: Any, codec: str, pixels: str, frames: np.ndarray, fps: float, options: dict
) -> None:
    stream = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = pixels
    for frame in frames:
        out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    out.mux(stream.encode(None))


def _decoded(content: bytes) -> tuple[np.ndarray, float]:
    """(frames, frames per second): that of most frames, for the last one may stay longer."""
    with av.open(io.BytesIO(content)) as video:
        stream = video.streams.video[0]
        frames = list(video.decode(stream))
        pause = float(np.median(np.diff([frame.time for frame in frames]))) if frames[1:] else 0
        pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
        return pixels, round(1 / pause, 3) if pause else float(stream.average_rate or 1)
