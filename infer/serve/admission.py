"""Which requests become jobs: fields checked, files looked into, limits kept."""

from __future__ import annotations

import base64
import binascii
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mv2_jax.errors import InputError
from mv2_jax.infer.ready import Checked
from mv2_jax.infer.serve import decode, fields, objects, store
from mv2_jax.infer.serve.fields import Refused, as_refused
from mv2_jax.infer.serve.store import Job, Store


@dataclass(frozen=True)
class Limits:
    """What one client, and all together, may ask for.

    rate: requests that make jobs, a client and minute. waiting: jobs that wait; client: those of
    one client. upload: bytes of a request. side: pixels along a side of what is uploaded. seconds:
    of an uploaded clip. pixels: of a video's frame, None for four times the weights' own. frames:
    keyframes of a video, None for eight times the weights' own.
    """

    rate: int = 60
    waiting: int = 1000
    client: int = 100
    upload: int = 64 << 20
    side: int = 8192
    seconds: float = 600.0
    pixels: int | None = None
    frames: int | None = None


class Admission:
    """Makes jobs of requests, for the weights that are served."""

    def __init__(self, jobs: Store, weights: Any, limits: Limits) -> None:
        """Raises InputError: the weights cannot be read."""
        self._jobs, self._weights, self._limits = jobs, weights, limits
        self._checked = Checked()
        ready = self._checked.numbers(fields.first_request(weights))
        self.ready, self.model = ready, ready.bundle.name
        stage = ready.bundle.stages["v2v"]
        self._pixels = limits.pixels or 4 * math.prod(stage.size)
        self._frames = limits.frames or 8 * stage.frames

    def video(self, said: Mapping[str, Any], files: Mapping[str, BinaryIO], client: str) -> Job:
        """A video is queued.

        Args:
            said: the request's fields. files: what was uploaded, by field.

        Raises:
            Refused: anything wrong with it.
        """
        given = fields.checked({**said, **dict.fromkeys(files, "")}, fields.VIDEO)
        self._known(given)
        if "seconds" in given and "num_frames" in given:
            raise Refused("give seconds or num_frames, not both", "num_frames")
        name = store.new_id()
        with _folder(self._jobs.place(name)) as folder:
            found = self._reference(given, "input_reference", files, folder)
            line = self._line(given, found, folder)
            asked = self._asked(given, line, folder)
            return self._jobs.add(name, "video", client, asked)

    def interpolation(
        self, said: Mapping[str, Any], files: Mapping[str, BinaryIO], client: str
    ) -> Job:
        """An interpolation of an uploaded clip is queued. Raises Refused."""
        given = fields.checked({**said, **dict.fromkeys(files, "")}, fields.INTERPOLATION)
        name = store.new_id()
        with _folder(self._jobs.place(name)) as folder:
            found = self._reference(given, "video", files, folder)
            if found is None or found["kind"] != "clip":
                raise Refused("video takes a clip; a picture has nothing between its frames",
                              "video")  # fmt: skip
            rest = {key: value for key, value in given.items() if key != "video"}
            if "mv2" in rest:  # of a form it is text
                rest["mv2"] = fields.own_options(rest["mv2"], fields.OF_INTERPOLATE)
            args = fields.interpolation(rest, str(folder / found["file"]), str(folder / "out.mp4"))
            facts = _smoother(found, args)
            asked = {"fields": rest, "clip": found["file"], "facts": facts, "stages": ["vfi"],
                     "model": rest.get("model", "rife")}  # fmt: skip
            return self._jobs.add(name, "interpolation", client, asked)

    def _known(self, given: Mapping[str, Any]) -> None:
        if given.get("model", self.model) != self.model:
            raise Refused(f"there is no model {given['model']!r} here; it serves {self.model!r}",
                          "model", 404, "model_not_found")  # fmt: skip

    def _reference(
        self, given: Mapping[str, Any], name: str, files: Mapping[str, BinaryIO], folder: Path
    ) -> dict[str, Any] | None:
        """What was uploaded in a field, looked into. Raises Refused."""
        if name in files:
            path = folder / "upload"
            with open(path, "wb") as out:
                shutil.copyfileobj(files[name], out)
        elif name in given:
            path = _from_url(given[name], name, folder, self._limits.upload)
        else:
            return None
        try:
            return decode.look(path, folder, self._limits.side, self._limits.seconds)
        except InputError as error:
            raise Refused(f"{name}: {error}", name) from None
        finally:
            path.unlink(missing_ok=True)

    def _line(
        self, given: Mapping[str, Any], found: Mapping[str, Any] | None, folder: Path
    ) -> dict[str, Any]:
        """The line of `infer.prompts` for the worker, whose files are named without a folder."""
        start = {"picture": "i2v", "clip": "v2v"}[found["kind"]] if found else "t2i"
        line = fields.line_of(given, start)
        if found:
            line["image" if start == "i2v" else "video"] = found["file"]
        with as_refused():
            line["seed"] = fields.request_of(fields.placed(line, folder), self._weights).seed
        return line

    def _asked(
        self, given: Mapping[str, Any], line: dict[str, Any], folder: Path
    ) -> dict[str, Any]:
        """What the job is to hold; what is too large is refused."""
        with as_refused():
            ready = self._ready(line, folder)
            vfi = ready.used["vfi"]
            between, fps = int(vfi["between"]), float(vfi["fps"])
            wanted = given.get("num_frames")
            if "seconds" in given:
                wanted = max(1, round(given["seconds"] * fps))
            if wanted is not None:
                needed = _keyframes(wanted, between, ready.sized.stages["v2v"].context == "closed")
                if needed != ready.sized.stages["v2v"].frames:
                    line["frames"] = needed
                if needed > self._frames:
                    param = "seconds" if "seconds" in given else "num_frames"
                    most = (self._frames - 1) * (between + 1) + 1
                    raise Refused(f"{param}: {wanted} frames are too many; {most} are the most",
                                  param)  # fmt: skip
                ready = self._ready(line, folder)
        stage, steps = ready.sized.stages["v2v"], between + 1
        for each in ("t2i", "i2v", "v2v"):
            height, width = ready.sized.stages[each].size
            if height * width > self._pixels:
                raise Refused(f"size: {width}x{height} is too large; {self._pixels} pixels a frame "
                              "are the most", "size")  # fmt: skip
        if stage.frames > self._frames:
            raise Refused(f"{stage.frames} keyframes are too many; {self._frames} are the most",
                          "mv2.frames")  # fmt: skip
        whole = stage.context == "closed"
        made = stage.frames * steps if whole else (stage.frames - 1) * steps + 1
        return {
            "line": line,
            "frames": wanted,
            "prompt": line["prompt"],
            "seed": line["seed"],
            "model": self.model,
            "stages": objects.stages_of(ready.request.start, between > 0),
            "facts": {
                "width": stage.size[1],
                "height": stage.size[0],
                "fps": fps,
                "frames": wanted or made,
            },
        }

    def _ready(self, line: Mapping[str, Any], folder: Path) -> Any:
        return self._checked.numbers(fields.request_of(fields.placed(line, folder), self._weights))


def _smoother(clip: Mapping[str, Any], args: Any) -> dict[str, Any]:
    """What will come of a clip, about: its own times may be uneven."""
    pace, slow = clip["frames"] / max(clip["seconds"], 1e-3), float(args.slow)
    times = args.times or (2 if slow == 1 else math.ceil(slow))
    fps = float(args.fps or pace * times / slow)
    made = (clip["frames"] - 1) * times + 1
    seconds = clip["seconds"] * slow
    return {
        "width": clip["width"],
        "height": clip["height"],
        "fps": round(fps, 3),
        "frames": max(1, round(seconds * fps)) if args.fps else made,
        "seconds": round(seconds, 3),
    }


def _keyframes(frames: int, between: int, closed: bool) -> int:
    """The least that make so many frames; a closed loop has a gap behind its last one, too."""
    if closed:
        return math.ceil(frames / (between + 1))
    return math.ceil((frames - 1) / (between + 1)) + 1


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A job's folder, which goes again where the job is refused."""
    path.mkdir(parents=True)
    try:
        yield path
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def _from_url(said: Any, name: str, folder: Path, most: int) -> Path:
    """A data: URL's content, as a file. Other addresses are not fetched."""
    url = said.get("image_url") if isinstance(said, Mapping) else said
    match = re.match(r"data:[^,;]*;base64,", url) if isinstance(url, str) else None
    if match is None:
        raise Refused(
            f"{name} takes a file of a form, or a data: URL in base64; nothing is fetched from "
            "other addresses",
            name,
        )
    try:
        content = base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"{name}: its base64 is damaged", name) from None
    path = folder / "upload"
    path.write_bytes(content)
    return path
