"""Control-LoRAs (Stability AI's): a ControlNet as its difference from the UNet that it steers.

A file in LDM's names holds, of each layer that was trained, two factors NAME.up and NAME.down,
whose product is added to the UNet's weight; biases and norms whole; and what a UNet has none of,
whole: the picture's embedding and the convolutions on the states. The rest is the UNet's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mv2_jax.config import UNetConfig
from mv2_jax.convert import config_from_shapes, diffusers_config, ldm, param_shapes
from mv2_jax.convert.engine import shorten
from mv2_jax.convert.kind import FileNetwork, Kind, Torch, shapes, translated
from mv2_jax.convert.kinds.bodies import LDM, family
from mv2_jax.convert.kinds.controlnet import fits
from mv2_jax.convert.ops import as_numpy
from mv2_jax.convert.sources import View, spec
from mv2_jax.convert.tables import controlnet
from mv2_jax.errors import InputError
from mv2_jax.tensorfile import Spec

if TYPE_CHECKING:
    from mv2_jax.convert.pending import PendingNetwork

_MARK, _HINT = "lora_controlnet", "input_hint_block.0.weight"
_BODY = ("conv_in.", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block.")
_OWN = "controlnet_"


class Over(View):
    """A ControlNet's tensors by diffusers' names: a UNet's with a Control-LoRA's over them.

    lora, unet: the tensors of both, by diffusers' names.
    """

    def __init__(self, lora: Mapping[str, Any], unet: Mapping[str, Any]):
        body = [name for name in unet if name.startswith(_BODY)]
        own = [name for name in lora if name.startswith(_OWN)]
        super().__init__({}, {name: name for name in (*body, *own)})
        self.lora, self.unet = lora, unet

    def factors(self, key: str) -> tuple[str, str] | None:
        """The names of the two whose product is added to a tensor, if there are any."""
        up, down = (key.removesuffix("weight") + half for half in ("up", "down"))
        return (up, down) if key.endswith(".weight") and up in self.lora else None

    def __getitem__(self, key: str) -> Any:
        pair = self.factors(key)
        if pair is None:
            return self.lora[key] if key in self.lora else self.unet[key]
        up, down = (as_numpy(self.lora[name]).astype(np.float32) for name in pair)
        weight = as_numpy(self.unet[key]).astype(np.float32)
        change = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
        return weight + change.reshape(weight.shape)

    def spec(self, key: str) -> Spec:
        """Shape and type of a tensor, without reading it."""
        if self.factors(key):
            return spec(self.unet, key)._replace(dtype=np.dtype(np.float32))
        return spec(self.lora if key in self.lora else self.unet, key)

    def check(self) -> None:
        """Raises InputError for what has no place in the UNet, or another size there."""
        used, unlike = {_MARK}, []
        for key in self:
            pair = self.factors(key)
            used |= {key, *(pair or ())}
            if pair is None:
                if key in self.lora and key in self.unet:
                    same = spec(self.lora, key).shape == spec(self.unet, key).shape
                    unlike += [] if same else [key]
                continue
            if pair[1] not in self.lora:
                raise InputError(f"{pair[0]} has no {pair[1]} beside it")
            up, down = (spec(self.lora, name).shape for name in pair)
            sizes = up[0] * int(np.prod(down[1:])), int(np.prod(spec(self.unet, key).shape))
            fit = up[0] == spec(self.unet, key).shape[0] and sizes[0] == sizes[1]
            unlike += [] if fit and int(np.prod(up[1:])) == down[0] else [key]
        left = [name for name in self.lora if name not in used]
        for names, what in ((left, "has no such layer"), (unlike, "has a layer of another size")):
            if names:
                raise InputError(f"the UNet {what}: {shorten(names, limit=1)[0]}")


def find(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[FileNetwork]:
    """The file that is a Control-LoRA."""
    factors = any(name.endswith(".up") for name in source)
    if factors and (_MARK in source or _HINT in source):
        ranks = {spec(source, name).shape[1] for name in source if name.endswith(".up")}
        title = f"a Control-LoRA (rank {max(ranks)})"
        yield FileNetwork(
            "control_lora", title, LDM, View(source, {n: n for n in source}), [], None
        )


def whole(part: FileNetwork, built: Mapping[str, PendingNetwork]) -> FileNetwork:
    """The ControlNet that it makes of the UNet among the networks. Raises InputError as `check`."""
    under = built["spatial"].found.part
    lora = View(part.tensors, translated({n: n for n in part.tensors}, ldm.controlnet_modules))
    tensors = Over(lora, under.tensors)
    tensors.check()
    hints = config_from_shapes.controlnet(shapes(tensors, {name: name for name in tensors}), {})
    body = dataclasses.replace(under.config, out_channels=UNetConfig.out_channels)
    cfg = dataclasses.replace(hints, unet=body)
    title = f"{part.title} over {family(under.config)}"
    return dataclasses.replace(
        part, title=title, tensors=tensors, table=controlnet.rules(cfg), config=cfg
    )


KIND = Kind(
    title="a Control-LoRA",
    serves="--controlnet",
    find=find,
    fills="controlnet",
    whole=whole,
    target=param_shapes.controlnet,
    fits=fits,
    torch=Torch(
        compare="mv2_jax.convert.compare_networks:control",
        published=lambda cfg, unet: diffusers_config.controlnet(cfg),
        converters={LDM: "mv2_jax.convert.reference:control_lora"},
    ),
)
