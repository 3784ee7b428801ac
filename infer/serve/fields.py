"""What requests may say: one table of fields for each kind, from which their checks and the OpenAPI
description are made. Nothing here imports JAX.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mv2_jax.errors import InputError
from mv2_jax.infer import interpolate_flags, interpolators, prompts
from mv2_jax.infer.choices import CHOICES
from mv2_jax.infer.request import Request
from mv2_jax.infer.settings import SETTINGS
from mv2_jax.lookup import nearest
from mv2_jax.numbers import DIFFUSION

LONGEST_PROMPT = 4000  # characters
_SEEDS = 2**32


class Refused(Exception):
    """A request that is answered by an error. `message` is one line for whoever asked.

    Args:
        status: of HTTP. param: the field that is wrong. code: a word for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.status = message, param, status
        self.code, self.headers = code, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON, as OpenAI's API has it."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        name = kind.get(self.status, "invalid_request_error")
        if self.status >= 500:
            name = "server_error"
        said = {"message": self.message, "type": name, "param": self.param, "code": self.code}
        return {"error": said}


@dataclass(frozen=True)
class Field:
    """One field: what it is, and its JSON schema. For numbers texts will do, as forms send."""

    help: str
    schema: Mapping[str, Any]
    required: bool = False

    def check(self, name: str, value: Any) -> Any:
        """The value, of the field's own type. Raises Refused."""
        kind = self.schema.get("type")
        if kind in ("integer", "number"):
            return self._number(name, value, kind)
        if not isinstance(value, str):
            raise Refused(f"{name} takes a text, not {_short(value)}", name)
        if len(value) > self.schema.get("maxLength", len(value)):
            raise Refused(f"{name} has {len(value)} characters; {self.schema['maxLength']} are the "
                          "most", name)  # fmt: skip
        if "pattern" in self.schema and not re.search(self.schema["pattern"], value):
            raise Refused(f"{name} takes {self.help}, not {_short(value)}", name)
        return value

    def _number(self, name: str, value: Any, kind: str) -> float:
        low, high = self.schema["minimum"], self.schema["maximum"]
        what = "a whole number" if kind == "integer" else "a number"
        try:
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise ValueError
            number = float(value)
            if kind == "integer" and number != int(number):
                raise ValueError
        except (ValueError, OverflowError):
            raise Refused(f"{name} takes {what}, not {_short(value)}", name) from None
        if not low <= number <= high:
            raise Refused(f"{name} is {number:g}; it goes from {low:g} to {high:g}", name)
        return int(number) if kind == "integer" else number


def _number(help: str, kind: str, low: float, high: float) -> Field:
    return Field(help, {"type": kind, "minimum": low, "maximum": high})


_TEXT = {"type": "string", "maxLength": LONGEST_PROMPT}
VIDEO = {
    "prompt": Field(
        "what the video is to show", {**_TEXT, "minLength": 1, "pattern": r"\S"}, required=True
    ),
    "model": Field("the name of the served weights", {"type": "string", "maxLength": 200}),
    "size": Field(
        'WIDTHxHEIGHT, such as "256x256"', {"type": "string", "pattern": r"^\d{1,5}x\d{1,5}$"}
    ),
    "seconds": _number("length of the video", "number", 0.01, 3600),
    "num_frames": _number("its frames, in place of seconds", "integer", 1, 16384),
    "fps": _number("frames a second", "number", 0.1, 240),
    "seed": _number("of the noise; else any", "integer", 0, _SEEDS - 1),
    "num_inference_steps": _number("steps of every stage that denoises", "integer", 1, 1000),
    "guidance_scale": _number("guidance of every stage that denoises", "number", 0, 100),
    "negative_prompt": Field("what to steer away from", _TEXT),
    "input_reference": Field(
        "a picture or clip to start from: a file of a form, or {\"image_url\": \"data:...\"}", {}
    ),
    "mv2": Field("options of `mv2 generate`, by name: {\"v2v_strength\": 0.4}", {}),
}  # fmt: skip
INTERPOLATION = {
    "video": Field("the clip: a file of a form, or a data: URL", {}, required=True),
    "model": Field("rife, best, ema, gan, or none", {"type": "string", "maxLength": 40}),
    "times": _number("frames for each", "integer", 2, 64),
    "fps": _number("frames a second, in place of times", "number", 1, 240),
    "slow": _number("so many times slower", "number", 1, 64),
    "mv2": Field("options of `mv2 interpolate`, by name: {\"views\": 2}", {}),
}  # fmt: skip
# Options of the commands that a client may set: those that name no file of the server's.
_OF_GENERATE = (
    *(option.dest for option in (*SETTINGS, *CHOICES)),
    *(f"{stage}_negative" for stage in DIFFUSION),
    "tell",
)
OF_INTERPOLATE = (
    "start", "end", "views", "scale", "cuts", "pause", "dedupe", "crf", "sound", "preset"
)  # fmt: skip


def checked(said: Mapping[str, Any], known: Mapping[str, Field]) -> dict[str, Any]:
    """The fields, each of its own type; what is null is left out.

    Raises:
        Refused: an unknown field (the nearest is named), a wrong value, or one that is missing.
    """
    made = {}
    for name, value in said.items():
        if name not in known:
            raise Refused(f"unknown field {_short(name)}{nearest(name, known)}", name[:100])
        if value is not None:
            made[name] = known[name].check(name, value) if known[name].schema else value
    for name, about in known.items():
        if about.required and name not in made:
            raise Refused(f"{name} is missing: {about.help}", name)
    return made


def line_of(fields: Mapping[str, Any], start: str) -> dict[str, Any]:
    """The line of `mv2 generate --prompts` (`infer.prompts`) that checked fields stand for.

    Args:
        start: the first stage to run.

    Raises:
        Refused: what `mv2` says cannot be said here.
    """
    line: dict[str, Any] = {"prompt": fields["prompt"], "seed": fields.get("seed", "random")}
    for name, key in (("size", "size"), ("fps", "fps"), ("negative_prompt", "negative")):
        if name in fields:
            line[key] = fields[name]
    for stage in DIFFUSION[DIFFUSION.index(start) :]:
        if "num_inference_steps" in fields:
            line[f"{stage}_steps"] = fields["num_inference_steps"]
        if "guidance_scale" in fields:
            line[f"{stage}_guidance"] = fields["guidance_scale"]
    return line | own_options(fields.get("mv2", {}), _OF_GENERATE)


def own_options(said: Any, known: Sequence[str]) -> dict[str, Any]:
    """What the field `mv2` says: a JSON object, or the text of one. Raises Refused."""
    if isinstance(said, str):
        try:
            said = json.loads(said)
        except (ValueError, RecursionError):
            said = None
    if not isinstance(said, Mapping):
        raise Refused("mv2 takes a JSON object of options by name", "mv2")
    made = {}
    for key, value in said.items():
        name, param = key.replace("-", "_"), f"mv2.{key}"[:100]
        if name not in known:
            raise Refused(f"mv2 has no option {_short(key)}{nearest(name, known)}", param)
        if value is not None:
            made[name] = value
    for choice in CHOICES:
        # A module's name would be imported, and a file's read.
        words = str(made.get(choice.dest, "")).split("+")
        if isinstance(choice.known[0], str) and choice.dest in made and known is _OF_GENERATE:
            for word in words:
                if word not in choice.known:
                    raise Refused(
                        f"mv2.{choice.dest} takes one of {', '.join(choice.known)}"
                        f"{nearest(word, choice.known)}",
                        f"mv2.{choice.dest}",
                    )
    return made


def defaults(weights: Any) -> argparse.Namespace:
    """What a line does not say."""
    lists = {"look": [], "control": [], "tell": [], "lora": [], "prompt": []}
    return argparse.Namespace(
        **{name: None for name in prompts.FIELDS if name not in (*lists, "from", "weights")},
        **lists,
        from_=None,
        weights=weights,
    )


def request_of(line: Mapping[str, Any], weights: Any) -> Request:
    """The request of a job's line. Raises InputError."""
    content = json.dumps(line).encode()
    asked = prompts.Asker(defaults(weights))(prompts.Line(1, content))
    assert asked is not None
    return asked.request


def placed(line: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A job's line with its files' whole paths."""
    own = {name: str(folder / line[name]) for name in ("image", "video") if name in line}
    return {**line, **own}


def first_request(weights: Any) -> Request:
    """What is asked for before anybody asks: the weights are read, and programs compiled for it."""
    return Request(prompts=("a red ball bouncing over a meadow",), weights=weights)


def interpolation(fields: Mapping[str, Any], video: str, out: str) -> argparse.Namespace:
    """The arguments of `mv2 interpolate` that checked fields stand for. Raises Refused."""
    model = fields.get("model", "rife")
    for word in model.split("+"):
        if word not in interpolators.NAMES:
            raise Refused(
                f"model takes one of {', '.join(interpolators.NAMES)}"
                f"{nearest(word, interpolators.NAMES)}",
                "model",
            )
    if "times" in fields and "fps" in fields:
        raise Refused("give times or fps, not both", "fps")
    said = {key: fields[key] for key in ("times", "fps", "slow") if key in fields}
    said |= own_options(fields.get("mv2", {}), OF_INTERPOLATE)
    flags = [f"--{name}={_plain(value)}" for name, value in said.items()]
    with as_refused():
        args = interpolate_flags.parse([video, "-o", out, f"--vfi={model}", *flags])
        if model != "none":
            interpolators.check(model)
            if args.times and args.slow == 1:
                interpolators.fits(model, args.times, "times 2")
    return args


def _plain(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Refused(f"mv2 takes texts and numbers, not {_short(value)}", "mv2")
    return str(value)


@contextmanager
def as_refused() -> Iterator[None]:
    """An InputError of the block as a `Refused`."""
    try:
        yield
    except InputError as error:
        raise refused(error) from None


def refused(error: InputError) -> Refused:
    """What a command says of a flag, said of a field."""
    text = " ".join(str(error).split())
    text = re.sub(r" \(see mv2 \w+ --help\)$", "", text)
    flag = re.search(r"--([a-z][a-z0-9-]*)", text)
    param = flag[1].replace("-", "_") if flag else None
    text = re.sub(r"--([a-z][a-z0-9-]*)", lambda match: match[1].replace("-", "_"), text)
    renamed = {"negative": "negative_prompt", "vfi": "model", "image": "input_reference",
               "video": "input_reference"}  # fmt: skip
    return Refused(text, renamed.get(param, param))


def schema(known: Mapping[str, Field], file: str) -> dict[str, Any]:
    """The request body of the OpenAPI description, `file` being the field that takes one."""
    plain = {
        name: {**_loose(about.schema), "description": about.help}
        for name, about in known.items()
        if name not in (file, "mv2")
    }
    own = {"description": known["mv2"].help}
    required = [name for name, about in known.items() if about.required]
    url = {"type": "string", "pattern": "^data:", "description": known[file].help}
    reference = {
        "anyOf": [
            url,
            {"type": "object", "properties": {"image_url": url}, "required": ["image_url"],
             "additionalProperties": False},
        ]
    }  # fmt: skip
    shape = {"type": "object", "required": required, "additionalProperties": False}
    as_json = {**plain, file: reference, "mv2": {"type": "object", **own}}
    as_form = {**plain, file: {"type": "string", "format": "binary"}, "mv2": {"type": "string"}}
    return {
        "required": True,
        "content": {
            "application/json": {"schema": {**shape, "properties": as_json}},
            "multipart/form-data": {"schema": {**shape, "properties": as_form}},
        },
    }


def _loose(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A number's schema, with a text of one: OpenAI's clients say "4" for 4 seconds."""
    if schema.get("type") not in ("integer", "number"):
        return dict(schema)
    return {"anyOf": [dict(schema), {"type": "string", "pattern": r"^\d{1,10}(\.\d{1,6})?$"}]}


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=True, default=str)
    except (ValueError, RecursionError):
        text = str(type(value).__name__)
    return text if len(text) <= 80 else text[:77] + "..."
