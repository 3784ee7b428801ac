"""Networks of a cascade and their references, run on the same random inputs: a function a kind.

The planes are small and odd, since a network that is right at those is right at others; the
weights are whole, and so are clips: every position that motion modules know is asked. Ours runs by
the cascade's own config, the reference by its source's.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from mv2_jax import params
from mv2_jax.bundle import Bundle
from mv2_jax.config import MotionConfig, UNetConfig
from mv2_jax.convert import kinds, reference
from mv2_jax.convert.ops import as_numpy
from mv2_jax.convert.pending import PendingNetwork
from mv2_jax.models.clip_text import TextEncoder
from mv2_jax.models.clip_vision import VisionEncoder
from mv2_jax.models.controlnet import ControlNet
from mv2_jax.models.image_projection import ImageProjection
from mv2_jax.models.sparse_control import SparseControlNet, given_frames
from mv2_jax.models.unet import UNet
from mv2_jax.models.vae import AutoencoderKL
from mv2_jax.nn.motion import MotionModule
from mv2_jax.nn.transformer import Context

Pairs = list[tuple[Any, Any]]


class Numbers(NamedTuple):
    """The reference's tensors: of each what `census` says, and of small networks all of it."""

    census: dict[str, bytes]
    arrays: dict[str, np.ndarray]


Outcome = tuple[str, Pairs, Numbers]


@dataclasses.dataclass(frozen=True)
class Job:
    """What a comparison needs: the cascade, one component's network, and all networks by name.

    The networks' configs are the sources'; `config` is what the cascade says. `scopes`: of the
    motion modules' norms, where the user has said it and their source cannot.
    """

    bundle: Bundle
    name: str
    network: PendingNetwork
    all: Mapping[str, PendingNetwork]
    scope: str | None = None

    @property
    def config(self) -> Any:
        """The component's config in the cascade."""
        return self.bundle.config(self.name)

    @property
    def ours(self) -> params.Tree:
        """The stored parameters, in fp32."""
        return params.cast(self.bundle.load(self.name), np.float32)

    @functools.cached_property
    def _types(self) -> set[str]:
        """The stored leaves' types; the file is read for them once."""
        return {leaf.dtype.name for leaf in params.flatten(self.bundle.load(self.name)).values()}

    @property
    def mixed(self) -> bool:
        """Whether the component is stored in several types, each as it came."""
        return len(self._types) > 1

    @property
    def dtype(self) -> torch.dtype:
        """The type that the component is stored in; of several, the one that holds all."""
        return torch.float32 if self.mixed else getattr(torch, *self._types)

    @property
    def unet(self) -> UNetConfig:
        """The config, by its source, of the UNet that motion modules and adapters stand in."""
        return self.all["spatial"].config

    @property
    def around(self) -> UNetConfig:
        """The same by the cascade, with image tokens."""
        return dataclasses.replace(self.bundle.config("spatial"), image_tokens=True)

    def added(self, unet: UNetConfig) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What joins the time embedding of an SDXL network, for ours and for diffusers'."""
        if unet.pooled_width is None:
            return {}, {}
        pooled = self.noise(2, unet.pooled_width)
        sizes = np.float32([[1024, 768, 0, 16, 512, 640]] * 2)
        theirs = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(sizes)}
        return {"pooled": pooled, "size_ids": sizes}, theirs

    def noise(self, *shape: int) -> np.ndarray:
        """Standard normal numbers, others for every shape."""
        return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def census(array: np.ndarray) -> bytes:
    """A digest of how often each value occurs."""
    flat = np.ascontiguousarray(array).reshape(-1)
    bits = flat.view(f"u{flat.itemsize}")
    if flat.itemsize == 2:
        counts = np.bincount(bits, minlength=2**16)
        counts[0] += counts[2**15]  # minus zero is zero
        counts[2**15] = 0
        content = counts.tobytes()
    else:
        content = np.sort(flat + 0).tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


def unet(job: Job) -> Outcome:
    cfg, t = job.config, np.float32([999, 7])
    x, text = job.noise(2, 1, 13, 9, cfg.in_channels), job.noise(2, 7, cfg.context_width)
    added, theirs_added = job.added(cfg)
    net, numbers = _reference(job)
    theirs = _theirs(
        net,
        lambda net: (
            net(_first(x[:, 0]), _torch(t), _torch(text), added_cond_kwargs=theirs_added).sample
        ),
    )
    context = Context(jnp.asarray(text), **added)
    ours = _ours(lambda p: UNet(cfg).apply({"params": p}, x, t, context), job)
    return "diffusers' UNet2DConditionModel", [(ours[:, 0], _last(theirs))], numbers


def vae(job: Job) -> Outcome:
    cfg = job.config
    net, numbers = _reference(job)
    pixels = job.noise(1, 5 * cfg.factor, 3 * cfg.factor, cfg.in_channels)
    latents = job.noise(1, 5, 3, cfg.latent_channels)

    def both(net: Any) -> tuple[Any, Any]:
        made = net.encode(_first(pixels)).latent_dist
        return made.mean, made.logvar, net.decode(_first(latents)).sample

    theirs = _theirs(net, both)

    def mine(p: Any) -> tuple[Any, Any]:
        net = AutoencoderKL(cfg)
        mean, spread = net.apply({"params": p}, pixels, method="encode")
        return mean, spread, net.apply({"params": p}, latents, method="decode")

    pairs = list(zip(_ours(mine, job), map(_last, theirs)))
    return "diffusers' AutoencoderKL", pairs, numbers


def text(job: Job) -> Outcome:
    cfg = job.config
    net, numbers = _reference(job)
    ids = np.random.default_rng(0).integers(0, cfg.vocab_size - 2, (2, cfg.max_length))
    end = job.network.config.vocab_size - 1  # as CLIP's vocabulary has it; embeddings come behind
    ids[ids == end] = 0
    ids[:, -1] = ids[1, 5:] = end

    def states(net: Any) -> list[Any]:
        out = net(torch.from_numpy(ids), output_hidden_states=True)
        projected = [out.text_embeds] if hasattr(out, "text_embeds") else []
        return [out.last_hidden_state, out.hidden_states[-2], *projected]

    theirs = _theirs(net, states)

    def mine(p: Any) -> list[Any]:
        out = TextEncoder(cfg).apply({"params": p}, ids.astype(np.int32))
        projected = [out.projected] if cfg.projection else []
        return [out.last, out.hidden_states[-2], *projected]

    pairs = list(zip(_ours(mine, job), theirs, strict=True))
    return "transformers' CLIP text encoder", pairs, numbers


def vision(job: Job) -> Outcome:
    cfg = job.config
    net, numbers = _reference(job)
    pixels = job.noise(2, cfg.image_size, cfg.image_size, 3)

    def states(net: Any) -> list[Any]:
        out = net(_first(pixels), output_hidden_states=True)
        projected = [out.image_embeds] if hasattr(out, "image_embeds") else []
        return [out.hidden_states[-2], *projected]

    theirs = _theirs(net, states)

    def mine(p: Any) -> list[Any]:
        out = VisionEncoder(cfg).apply({"params": p}, pixels)
        return [out.hidden_states[-2], *([out.image_embeds] if cfg.projection else [])]

    pairs = list(zip(_ours(mine, job), theirs, strict=True))
    return "transformers' CLIP vision encoder", pairs, numbers


def motion(job: Job) -> Outcome:
    """Every motion module alone: they share no numbers, and need no UNet around them."""
    cfg, frames = job.config, job.network.config.max_frames
    scope = job.scope or reference.norm_scopes(job.network)[0]
    net, numbers = _reference(job)
    parts = {
        name.replace(".motion_modules.", "/motion_modules_").replace("blocks.", "blocks_"): part
        for name, part in net.named_modules()
        if ".motion_modules." in name
        and name.count(".") <= 3
        and name.rpartition(".")[2].isdecimal()
    }
    run = _module(cfg)
    tree, pairs = job.ours, []
    for path, part in parts.items():
        leaves = tree
        for key in path.split("/"):
            leaves = leaves[key]
        x = job.noise(1, frames, 3, 5, part.proj_in.in_features)
        if scope == "frame":
            part.norm = reference.EachFrame(part.norm)
        with torch.no_grad():
            theirs = part(_first(x[0]), num_frames=frames)
        pairs.append((run(leaves, x)[0], _last(theirs)))
    norms = "" if scope == "clip" else ", its norms over each frame"
    return f"diffusers' MotionAdapter ({len(pairs)} modules{norms})", pairs, numbers


@functools.lru_cache(maxsize=2)
def _module(cfg: MotionConfig) -> Callable[..., jax.Array]:
    """A motion module compiled: two stages often have modules of one shape."""
    return compiled(lambda p, x: MotionModule(cfg).apply({"params": p}, x))


def adapter(job: Job) -> Outcome:
    """The projection by itself, and its tokens through the spatial UNet with text beside them."""
    cfg, unet = job.config, job.around
    shape = (2, cfg.in_width) if cfg.kind == "linear" else (2, 11, cfg.in_width)
    image, t = job.noise(*shape), np.float32([999, 7])
    x, text = job.noise(2, 1, 13, 9, unet.in_channels), job.noise(2, 7, unet.context_width)
    net = reference.module(job.all["spatial"], job.dtype, job.unet)
    before = set(net.state_dict())
    reference.with_adapter(net, job.network, job.dtype)
    numbers = _numbers({k: v for k, v in net.state_dict().items() if k not in before}, job)
    added, theirs_added = job.added(unet)

    def both(net: Any) -> tuple[Any, Any]:
        tokens = net.encoder_hid_proj.image_projection_layers[0](torch.from_numpy(image))
        given = {"image_embeds": [torch.from_numpy(image[:, None])], **theirs_added}
        out = net(_first(x[:, 0]), _torch(t), _torch(text), added_cond_kwargs=given)
        return tokens, out.sample

    tokens, theirs = _theirs(net, both)
    spatial = params.cast(job.bundle.load("spatial"), np.float32)

    def mine(p: Any) -> tuple[Any, Any]:
        tokens = ImageProjection(cfg).apply({"params": p["projection"]}, jnp.asarray(image))
        whole = params.merge(spatial, p["unet"])
        context = Context(jnp.asarray(text), tokens, **added)
        return tokens, UNet(unet).apply({"params": whole}, x, t, context)[:, 0]

    ours = _ours(mine, job)
    pairs = [(ours[0], tokens), (ours[1], _last(theirs))]
    return "diffusers' IP-Adapter", pairs, numbers


def control(job: Job) -> Outcome:
    cfg, t = job.config, np.float32([999, 7])
    net, numbers = _reference(job)
    x = job.noise(2, 1, 13, 9, cfg.unet.in_channels)
    text = job.noise(2, 7, cfg.unet.context_width)
    pixels = abs(job.noise(2, 13 * cfg.condition_factor, 9 * cfg.condition_factor, 3))
    added, theirs_added = job.added(cfg.unet)
    kinds = np.int32([0, cfg.types - 1]) if cfg.types else None

    def alone(net: Any, row: slice) -> Any:
        """Some rows; of ControlNet Union, whose attention is over them, one at a time."""
        seen = _first(pixels[row])
        told: dict[str, Any] = {"controlnet_cond": seen}
        if cfg.types:
            kind = int(kinds[row][0])
            told = {"controlnet_cond": [seen], "control_type_idx": [kind]}
            told["control_type"] = torch.eye(cfg.types)[kind][None]
        return net(
            _first(x[row, 0]),
            _torch(t[row]),
            _torch(text[row]),
            **told,
            added_cond_kwargs={name: value[row] for name, value in theirs_added.items()},
            return_dict=False,
        )

    rows = [slice(0, 1), slice(1, 2)] if cfg.types else [slice(None)]
    made = [_theirs(net, functools.partial(alone, row=row)) for row in rows]
    theirs = jax.tree.map(lambda *parts: np.concatenate(parts), *made)
    context = Context(jnp.asarray(text), **added)
    skips, middle = _ours(
        lambda p: ControlNet(cfg).apply({"params": p}, x, t, context, pixels, kind=kinds), job
    )
    pairs = [(a, _last(b)) for a, b in zip((*skips, middle), (*theirs[0], theirs[1]))]
    name = "ControlNetUnionModel" if cfg.types else "ControlNetModel"
    return f"diffusers' {name}", pairs, numbers


def sparse(job: Job) -> Outcome:
    """A clip whose first frame is given; torch's norms over each frame where ours are."""
    cfg, t = job.config, np.float32([999, 7])
    frames = job.network.config.unet.motion.max_frames
    text = job.noise(2, 7, cfg.unet.context_width)
    latents = job.noise(2, 1, 13, 9, cfg.condition_channels)
    condition, mask = (np.array(x) for x in given_frames(jnp.asarray(latents), (0,), frames))
    (net, numbers), scope = _reference(job), ""
    if reference.norm_scopes(job.network)[0] == "frame":
        scope = " (its norms over each frame)"
        for name, part in net.named_modules():
            if re.fullmatch(r".*\.motion_modules\.\d+", name):
                part.norm = reference.EachFrame(part.norm)
    shown = np.broadcast_to(mask[:, None, :, None, None], (2, 1, frames, 13, 9))
    theirs = _theirs(
        net,
        lambda net: net(
            torch.zeros(2, cfg.unet.in_channels, frames, 13, 9),
            _torch(t),
            _torch(text).repeat_interleave(frames, 0),
            controlnet_cond=_torch(np.moveaxis(condition, -1, 1)),
            conditioning_mask=_torch(shown),
            return_dict=False,
        ),
    )
    context = Context(jnp.asarray(text))
    skips, middle = _ours(
        lambda p: SparseControlNet(cfg).apply({"params": p}, condition, mask, t, context), job
    )
    pairs = [(a, _last(b)) for a, b in zip((*skips, middle), (*theirs[0], theirs[1]))]
    return f"diffusers' SparseControlNetModel{scope}", pairs, numbers


def _reference(job: Job) -> tuple[torch.nn.Module, Numbers]:
    """PyTorch's network, and its numbers as the cascade stores them."""
    net = reference.module(job.network, job.dtype, job.unet)
    return net, _numbers(net.state_dict(), job)


def _numbers(state: Mapping[str, torch.Tensor], job: Job) -> Numbers:
    """Of a state dict in the stored type; buffers of whole numbers are no weights. What a tensor
    fuses (queries, keys, values) is three here as it is in our trees."""
    counts, arrays = {}, {}
    summed = job.network.loras or kinds.get(job.network.found.part.kind).whole
    apart = {
        f"{name} {i}" if ".in_proj_" in name else name: part
        for name, value in state.items()
        for i, part in enumerate(value.chunk(3) if ".in_proj_" in name else [value])
    }
    for name, value in apart.items():
        if value.is_floating_point():
            array = as_numpy(value.to(job.dtype))
            counts[name] = census(array)
            if summed or name.endswith(".pe"):
                arrays[name] = array
    return Numbers(counts, arrays)


def _theirs(net: torch.nn.Module, run: Callable[[Any], Any]) -> Any:
    """What PyTorch says, as NumPy."""
    with torch.no_grad():
        out = run(net)
    return jax.tree.map(lambda value: value.numpy(), out)


def _ours(run: Callable[[Any], Any], job: Job) -> Any:
    """What the stored parameters say."""
    return jax.tree.map(np.asarray, compiled(run)(job.ours))


def compiled(run: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit`, quick to compile: programs here run once."""
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(run, compiler_options=options)


def _torch(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _first(array: np.ndarray) -> torch.Tensor:
    """[..., H, W, C] -> torch's [..., C, H, W]."""
    return _torch(np.moveaxis(array, -1, -3))


def _last(array: Any) -> np.ndarray:
    """[..., C, H, W] -> [..., H, W, C]."""
    return np.moveaxis(np.asarray(array), -3, -1)
