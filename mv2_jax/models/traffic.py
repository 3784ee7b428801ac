"""What devices send each other in one call of a network, derived from its sizes and the mesh.

This is arithmetic over the config, not a reading of the program: a test compiles the program and
compares. Bytes are those of each exchange's result on one device, by XLA's names of the kinds.

Backwards each exchange is undone: what was gathered is summed and split again, sums are summed, and
what went to positions comes back. Each parameter's gradient is then summed over the devices that
hold the same part of it. Nothing is recomputed in this count (`remat` False).

Letters: N rows times samples of a device, t its frames (f devices share a clip), l its tokens of a
plane (k devices share one), C channels.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh, Mesh

from mv2_jax import exchanges, params, sharding, shards
from mv2_jax.config import ControlNetConfig, UNetConfig

GATHER, SUM, TO_ALL, SCATTER = "all-gather", "all-reduce", "all-to-all", "reduce-scatter"


class Sent(NamedTuple):
    """An exchange forwards: the bytes of its result, and of a gathered one its parts."""

    kind: str
    size: int
    parts: int = 1

    @property
    def undone(self) -> Sent:
        """What it is backwards."""
        if self.kind == GATHER:
            return Sent(SCATTER, self.size // self.parts)
        return self


@dataclass(frozen=True)
class _Call:
    """A call's sizes on one device, and of how many devices each thing is shared by."""

    cfg: UNetConfig
    tensor: int
    over: int
    tokens: int
    clips: int  # N
    frames: int  # T
    here: int  # t
    itemsize: int

    def split(self, *sizes: int) -> int:
        return 1 if any(size % self.tensor for size in sizes) else self.tensor


def of_unet(
    cfg: UNetConfig,
    tree: Mapping[str, Any],
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    itemsize: int = 4,
    *,
    training: bool = False,
) -> dict[str, int]:
    """{kind: bytes} of one call, forwards, or in training forwards and backwards.

    Args:
        tree: its parameters, arrays or abstract, in their stored type.
        shape: [R, B, T, H, W, C] of the latents, fp32.
        itemsize: bytes of a number of the activations.
        training: its parameters' gradients are taken; its inputs have none.
    """
    call, plane = _call(cfg, shape, mesh, itemsize), shape[3:5]
    sent = [*_weights(call, tree, mesh), *_norms(call, tree), *_activations(call, plane)]
    if call.over > 1:  # the result, whole on every device of a clip
        size = 4 * call.clips * call.here * call.over * math.prod(plane) * cfg.out_channels
        sent.append(Sent(GATHER, size, call.over))
    return _sums(sent, tree, mesh, training)


def of_control(
    cfg: ControlNetConfig,
    tree: Mapping[str, Any],
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    itemsize: int = 4,
    *,
    training: bool = False,
) -> dict[str, int]:
    """{kind: bytes} of a ControlNet's call beside a UNet's, which its residuals go to on the same
    device. Arguments as in `of_unet`, `shape` the latents' too."""
    call = _call(cfg.unet, shape, mesh, itemsize)
    activations = _activations(call, shape[3:5], decoder=False)
    return _sums([*_weights(call, tree, mesh), *activations], tree, mesh, training)


def _call(
    cfg: UNetConfig, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, itemsize: int
) -> _Call:
    rows, samples, frames = shape[:3]
    split, layout = shards.lay_out(samples, frames, mesh)
    names = (split,) if isinstance(split, str) else split or ()
    over = _devices(mesh, layout.over)
    return _Call(
        cfg,
        mesh.shape.get("tensor", 1),
        over,
        _devices(mesh, layout.tokens),
        rows * samples // _devices(mesh, names),
        frames,
        -(-frames // over),
        itemsize,
    )


def _devices(mesh: Mesh | AbstractMesh, axes: Iterable[str]) -> int:
    return math.prod(mesh.shape[name] for name in axes)


def _sums(
    sent: list[Sent], tree: Mapping[str, Any], mesh: Mesh | AbstractMesh, training: bool
) -> dict[str, int]:
    """By kind; in training with the way back."""
    if training:
        sent = [*sent, *(each.undone for each in sent), *_gradients(tree, mesh)]
    sums: Counter[str] = Counter()
    for each in sent:
        sums[each.kind] += each.size
    return {kind: size for kind, size in sums.items() if size}


def _gradients(tree: Mapping[str, Any], mesh: Mesh | AbstractMesh) -> Iterator[Sent]:
    """Each parameter's, over the axes that it is whole on."""
    for path, leaf in params.flatten(tree).items():
        axes = [axis for axis in sharding.spec_for(path, leaf.shape, mesh) if axis]
        parts = _devices(mesh, axes)
        if parts < mesh.size:
            yield Sent(SUM, leaf.size * leaf.dtype.itemsize // parts)


def _weights(call: _Call, tree: Mapping[str, Any], mesh: Mesh | AbstractMesh) -> Iterator[Sent]:
    """Each parameter once, gathered over fsdp, and over tensor where its layer makes no part."""
    for path, leaf in params.flatten(tree).items():
        axes = tuple(sharding.spec_for(path, leaf.shape, mesh))
        size = leaf.size * leaf.dtype.itemsize
        size //= _devices(mesh, filter(None, axes))
        own = _makes_part(call, path)
        for axis in axes:
            if axis and not (axis == "tensor" and own):
                size *= mesh.shape[axis]
                yield Sent(GATHER, size, mesh.shape[axis])


def _makes_part(call: _Call, path: str) -> bool:
    """Whether the layer of this parameter makes its part of a width that tensor splits."""
    cfg = call.cfg
    width, heads = _level(cfg, path)
    if re.search(r"/(to_(q|k|v|k_ip|v_ip|out_0))/", path):
        inside = cfg.motion.heads if cfg.motion and "motion_modules_" in path else heads
        return call.split(inside) > 1
    if re.search(r"/resnets_\d+/(conv1|conv2|time_emb_proj)/", path):
        return call.split(width, cfg.norm_groups) > 1
    if "/net_2/" in path:
        moving = cfg.motion and "motion_modules_" in path
        return call.split((cfg.motion.mlp_ratio if moving else 4) * width) > 1
    return False  # a gated layer takes its part of both halves from the whole


def _norms(call: _Call, tree: Mapping[str, Any]) -> Iterator[Sent]:
    """Mean and variance of every norm that sees whole clips, channel by channel in fp32."""
    motion = call.cfg.motion
    if motion is None or call.over == 1:
        return
    for path, leaf in params.flatten(tree).items():
        of_module = re.search(r"motion_modules_\d+/norm/scale$", path)
        of_resnet = re.search(r"(resnets_\d+/norm[12]|conv_norm_out)/scale$", path)
        scope = motion.norm_scope if of_module else motion.resnet_norm_scope
        if (of_module or of_resnet) and scope == "clip":
            inner = of_resnet and "/norm2/" in path
            parts = call.split(leaf.size, call.cfg.norm_groups) if inner else 1
            yield Sent(SUM, 2 * 4 * call.clips * leaf.size // parts)


def _level(cfg: UNetConfig, path: str) -> tuple[int, int]:
    """(channels, heads) of the level that a parameter belongs to."""
    found = re.match(r"(down|up)_blocks_(\d+)/", path)
    last = len(cfg.channels) - 1
    index = last
    if found:
        index = int(found[2]) if found[1] == "down" else last - int(found[2])
    return cfg.channels[index], cfg.heads[index]


def _activations(call: _Call, plane: tuple[int, int], decoder: bool = True) -> Iterator[Sent]:
    """Of a UNet, or without the `decoder` of its first half alone."""
    cfg = call.cfg
    planes = [plane]
    for _ in cfg.channels[1:]:
        planes.append(tuple(-(-side // 2) for side in planes[-1]))
    last = len(cfg.channels) - 1
    units = cfg.layers_per_block + decoder * (cfg.layers_per_block + 1)  # one more up than down
    for i, plane in enumerate(planes):
        for _ in range(units):
            yield from _resnet(call, i, plane)
            yield from _transformer(call, i, plane, cfg.transformers[i])
            yield from _motion(call, i, plane)
    yield from _resnet(call, last, planes[-1])
    yield from _transformer(call, last, planes[-1], cfg.mid_transformers)
    if cfg.motion and cfg.motion.mid_block:
        yield from _motion(call, last, planes[-1])
    yield from _resnet(call, last, planes[-1])


def _resnet(call: _Call, level: int, plane: tuple[int, int]) -> Iterator[Sent]:
    width = call.cfg.channels[level]
    if call.split(width, call.cfg.norm_groups) > 1:
        yield Sent(SUM, call.clips * call.here * math.prod(plane) * width * call.itemsize)


def _transformer(call: _Call, level: int, plane: tuple[int, int], layers: int) -> Iterator[Sent]:
    width, parts = call.cfg.channels[level], call.split(call.cfg.heads[level])
    own = -(-math.prod(plane) // call.tokens)  # l
    state = call.clips * call.here * own * width * call.itemsize
    for _ in range(layers):
        if exchanges.takes_heads(call.cfg.heads[level] // parts, call.tokens):
            yield Sent(TO_ALL, 4 * state // parts)  # queries, keys, values and the result
        elif call.tokens > 1:  # keys and values
            yield Sent(GATHER, 2 * state * call.tokens // parts, call.tokens)
        if parts > 1:  # self and cross
            yield Sent(SUM, 2 * state)
        if call.split(4 * width) > 1:
            yield Sent(SUM, state)
    if layers and call.tokens > 1:
        yield Sent(GATHER, state * call.tokens, call.tokens)


def _motion(call: _Call, level: int, plane: tuple[int, int]) -> Iterator[Sent]:
    motion, width = call.cfg.motion, call.cfg.channels[level]
    if motion is None:
        return
    positions = -(-math.prod(plane) // call.over)
    if call.over > 1:  # to positions and back
        clip = call.here * positions * call.over
        yield Sent(TO_ALL, 2 * call.clips * clip * width * call.itemsize)
    state = call.clips * positions * call.frames * width * call.itemsize
    if call.split(motion.heads) > 1:
        yield Sent(SUM, motion.layers * motion.attentions * state)
    if call.split(motion.mlp_ratio * width) > 1:
        yield Sent(SUM, motion.layers * state)
