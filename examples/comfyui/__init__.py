"""ComfyUI nodes that make and smooth videos on a running `mv2 serve`.

Copy or link this folder into ComfyUI's `custom_nodes`. It needs nothing that ComfyUI has not
(PyTorch, NumPy, PyAV); mv2_jax itself may run anywhere, in another environment or on a TPU. A
server that wants a token finds it in the variable MV2_SERVE_TOKEN.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

import numpy as np
import torch

from .client import Client, Failed

_HERE = "http://127.0.0.1:8000"


def _comfy():
    """(a progress bar of 100 steps, a function that raises where the user has pressed Cancel)."""
    try:
        import comfy.model_management
        import comfy.utils
    except ImportError:  # outside of ComfyUI
        return None, lambda: None
    cancelled = comfy.model_management.throw_exception_if_processing_interrupted
    return comfy.utils.ProgressBar(100), cancelled


def _made(server: str, route: str, fields: dict, files: dict) -> tuple:
    """(frames [T, H, W, 3] in [0, 1], frames per second, the video's id on the server)."""
    bar, cancelled = _comfy()

    def look(video: dict) -> None:
        cancelled()
        if bar is not None:
            bar.update_absolute(int(video["progress"]), 100)

    client = Client(server, os.environ.get("MV2_SERVE_TOKEN"))
    frames, fps, name = client.make(route, fields, files, look)
    return torch.from_numpy(frames.astype(np.float32) / 255), fps, name


def _pixels(images: torch.Tensor) -> np.ndarray:
    """[T, H, W, 3] uint8 of ComfyUI's [T, H, W, C] in [0, 1]."""
    return (images[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _options(text: str) -> dict:
    """The JSON object of further options. Raises Failed where it is none."""
    found = None
    with suppress(ValueError):
        found = json.loads(text or "{}")
    if not isinstance(found, dict):
        raise Failed('options: write a JSON object, such as {"i2v_sampler": "euler"}')
    return found


class _Node:
    """What both nodes tell ComfyUI. A subclass has a route, a command whose options it takes, and
    `inputs`: (required, optional) as `INPUT_TYPES` has them."""

    CATEGORY = "mv2_jax"
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("frames", "fps", "video_id")
    ROUTE = COMMAND = ""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """ComfyUI's description of the inputs."""
        required, optional = cls.inputs()
        tip = f"{cls.COMMAND}'s, as JSON"
        shared = {
            "options": ("STRING", {"default": "{}", "tooltip": tip}),
            "server": ("STRING", {"default": _HERE}),
        }
        return {"required": required, "optional": {**optional, **shared}}

    def made(self, server: str, options: str, fields: dict, files: dict) -> tuple:
        """The outputs, once the server has made them."""
        return _made(server, self.ROUTE, {**fields, "mv2": _options(options)}, files)


class Generate(_Node):
    """A video of a prompt; one picture starts at I2V, several (a clip) at V2V."""

    ROUTE, COMMAND = "/v1/videos", "mv2 generate"
    DESCRIPTION = "Makes a video on a running mv2 serve."

    @classmethod
    def inputs(cls) -> tuple[dict, dict]:
        """A count, rate or size of 0 is the weights' own."""
        required = {
            "prompt": ("STRING", {"multiline": True, "default": "a red ball bouncing"}),
            "seed": ("INT", {"default": 0, "min": 0, "max": 2**32 - 1}),
        }
        optional = {
            "image": ("IMAGE", {"tooltip": "one picture starts at I2V, a clip at V2V"}),
            "negative_prompt": ("STRING", {"multiline": True, "default": ""}),
            "width": ("INT", {"default": 0, "min": 0, "max": 8192}),
            "height": ("INT", {"default": 0, "min": 0, "max": 8192}),
            "frames": ("INT", {"default": 0, "min": 0, "max": 16384}),
            "fps": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 240.0}),
            "steps": ("INT", {"default": 0, "min": 0, "max": 1000}),
        }
        return required, optional

    def run(self, prompt, seed, image=None, negative_prompt="", width=0, height=0, frames=0,
            fps=0.0, steps=0, options="{}", server=_HERE):  # fmt: skip
        """What ComfyUI calls."""
        if bool(width) != bool(height):
            raise Failed("give both width and height, or neither")
        asked = {
            "prompt": prompt,
            "seed": seed,
            "negative_prompt": negative_prompt or None,
            "size": f"{width}x{height}" if width else None,
            "num_frames": frames or None,
            "fps": fps or None,
            "num_inference_steps": steps or None,
        }
        files = {} if image is None else {"input_reference": (_pixels(image), fps or 8)}
        return self.made(server, options, asked, files)


class Interpolate(_Node):
    """More frames for a clip."""

    ROUTE, COMMAND = "/v1/interpolations", "mv2 interpolate"
    DESCRIPTION = "Inserts frames between frames on a running mv2 serve."

    @classmethod
    def inputs(cls) -> tuple[dict, dict]:
        """The clip's frames, its pace, and how many frames each becomes."""
        required = {
            "frames": ("IMAGE",),
            "fps": ("FLOAT", {"default": 8.0, "min": 0.1, "max": 240.0}),
            "times": ("INT", {"default": 2, "min": 2, "max": 64}),
        }
        return required, {}

    def run(self, frames, fps, times, options="{}", server=_HERE):
        """What ComfyUI calls."""
        if len(frames) < 2:
            raise Failed("a clip of two frames or more is needed")
        files = {"video": (_pixels(frames), fps)}
        return self.made(server, options, {"times": times}, files)


NODE_CLASS_MAPPINGS = {"MV2Generate": Generate, "MV2Interpolate": Interpolate}
NODE_DISPLAY_NAME_MAPPINGS = {
    "MV2Generate": "Generate video (mv2_jax)",
    "MV2Interpolate": "Interpolate frames (mv2_jax)",
}
