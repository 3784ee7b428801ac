"""Cases for `test_meshes`: a network, a mesh and sizes, on the mesh beside one device.

`python tests/meshes.py DEVICES FIRST LAST` runs the cases of these numbers on meshes of so many
emulated devices, and prints each difference.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import tiny
from quick import quick

from mv2_jax import sharding, shards
from mv2_jax.config import MotionConfig, SparseControlConfig, UNetConfig
from mv2_jax.diffusion import guidance, keys
from mv2_jax.models.backbone import denoise
from mv2_jax.models.clip_text import TextEncoder
from mv2_jax.models.clip_vision import VisionEncoder
from mv2_jax.models.controlnet import ControlNet
from mv2_jax.models.image_projection import ImageProjection
from mv2_jax.models.sparse_control import SparseControlNet, given_frames
from mv2_jax.models.unet import UNet
from mv2_jax.models.vae import AutoencoderKL
from mv2_jax.nn.transformer import Context
from mv2_jax.stages import i2v, interpolators, latents
from mv2_jax.stages import stage as stages

KINDS = ("i2v", "vae", "t2i", "loss", "sparse", "encoders", "vfi", "clip", "chain")
AXES = sharding.AXES
VAE = dataclasses.replace(tiny.VAE, channels=(8, 8), mid_attention=True, patch_size=4)


class Case(NamedTuple):
    """`sizes` of the mesh, B, T, [h, w] of the latents, guidance rows; `deep`: two levels."""

    kind: str
    sizes: tuple[int, ...]
    batch: int
    frames: int
    plane: tuple[int, int]
    rows: int
    deep: bool

    def __str__(self) -> str:
        mesh = ",".join(f"{a}={n}" for a, n in zip(AXES, self.sizes) if n > 1)
        plane = "x".join(map(str, self.plane))
        return f"{self.kind}-{mesh}-R{self.rows}B{self.batch}T{self.frames}-{plane}"


def factorings(devices: int) -> list[tuple[int, ...]]:
    """Every mesh of so many devices."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    return [s for s in itertools.product(divisors, repeat=4) if math.prod(s) == devices]


def case(number: int, devices: int = 8) -> Case:
    """The kinds in turn, the rest drawn. Every tenth mesh of eight devices has six of them."""
    rng = np.random.default_rng([number, devices])
    meshes = factorings(6 if devices == 8 and number % 10 == 9 else devices)
    # A stride that meets all meshes before any comes again.
    sizes = meshes[(7 * number + 3) % len(meshes)]
    kind = KINDS[number % len(KINDS)]
    frames = int(rng.choice([1, 2, 3, 5, 7, 8]))
    if kind == "t2i":
        frames = 1
    if kind in ("vfi", "clip"):  # of one frame, or one gap, there is nothing to test
        frames = max(3, frames)
    return Case(
        kind,
        sizes,
        int(rng.integers(1, 4)),
        frames,
        tuple(int(n) for n in rng.choice([3, 4, 5], 2)),
        int(rng.integers(1, 4)),
        deep=number >= 24 and bool(rng.integers(2)),
    )


def random(shapes: Any, seed: int = 0) -> Any:
    return tiny.random(shapes, seed)


def flat(tree: Any) -> Any:
    """[R, B, ...] -> [R * B, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def spatial(case: Case) -> UNetConfig:
    if not case.deep:
        return tiny.SPATIAL
    return dataclasses.replace(tiny.SPATIAL, channels=(8, 16), transformers=(1, 1), heads=(2, 4))


def inflated(case: Case, image: bool) -> UNetConfig:
    scope = "clip" if case.kind == "clip" else "frame"
    motion = MotionConfig(
        max_frames=8, heads=2, norm_groups=4, attentions=1, norm_scope=scope, mid_block=case.deep
    )
    if case.kind == "clip":
        motion = dataclasses.replace(motion, resnet_norm_scope="clip")
    return dataclasses.replace(spatial(case), motion=motion, image_tokens=image)


def denoiser(case: Case) -> tuple[Any, Any, tuple[Any, ...]]:
    """(network, parameters, (x, t, told)) of a stage, as its backbone's entry takes them."""
    rng = np.random.default_rng(1)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal((case.rows, case.batch, *shape)).astype(np.float32)

    moving = case.kind != "t2i"
    unet = UNet(inflated(case, True) if moving else spatial(case))
    x, t = draw(case.frames, *case.plane, 4), 500 + 100 * draw()
    told = {"text": draw(5, 8), "image": draw(4, 8), "scale": draw(), "shown": None}
    control: Any = None
    if case.kind == "sparse":
        body = dataclasses.replace(inflated(case, False), in_channels=4)
        control = SparseControlNet(SparseControlConfig(body))
        told["shown"] = draw(*case.plane, 4)
    elif moving:
        control = ControlNet(dataclasses.replace(tiny.CONTROL, unet=spatial(case)))
        told["shown"] = draw(*(8 * n for n in case.plane), 3)

    def apply(params: Any, x: Any, t: Any, told: Any) -> Any:
        residuals, text = None, told["text"]
        if case.kind == "sparse":
            whole = given_frames(told["shown"][:, None], (0,), shards.frames(x.shape[1]))
            own = (shards.own(part) for part in whole)
            residuals = control.apply(
                {"params": params["control"]}, *own, t, Context(text), told["scale"]
            )
        elif moving:
            residuals = control.apply(
                {"params": params["control"]}, x, t, Context(text), told["shown"], told["scale"]
            )
        context = Context(text, told["image"], told["scale"]) if moving else Context(text)
        return unet.apply({"params": params["unet"]}, x, t, context.replace(residuals=residuals))

    def network(params: Any, x: Any, t: Any, told: Any) -> Any:
        out = apply(params, *flat((x, t, told)))
        return out.reshape(x.shape)

    def shapes(key: Any) -> Any:
        one, now, given = jax.tree.map(lambda leaf: leaf[0, :1], (x, t, told))
        context = Context(given["text"], given["image"]) if moving else Context(given["text"])
        made = {"unet": unet.init(key, one, now, context)["params"]}
        if case.kind == "sparse":
            parts = given_frames(given["shown"][:, None], (0,), case.frames)
            made["control"] = control.init(key, *parts, now, Context(given["text"]))["params"]
        elif moving:
            text = Context(given["text"])
            made["control"] = control.init(key, one, now, text, given["shown"])["params"]
        return made

    return network, random(jax.eval_shape(shapes, jax.random.key(0))), (x, t, told)


def of_network(case: Case) -> tuple[Any, Any, Any]:
    network, params, args = denoiser(case)
    return functools.partial(denoise, network), params, args


def video(case: Case) -> tuple[Any, Any, dict[str, Any]]:
    """(config, parameters, raw inputs) of I2V's stage."""
    size = tuple(8 * n for n in case.plane)
    own = dataclasses.replace(
        tiny.KEYFRAMES, unet=inflated(case, True), frames=case.frames, size=size
    )
    control = dataclasses.replace(tiny.CONTROL, unet=spatial(case))
    networks = {**tiny.NETWORKS, "control": control}
    cfg, rng = stages.build("i2v", own, networks, tiny.VAE.factor), np.random.default_rng(5)
    params = random(jax.eval_shape(lambda key: stages.init(cfg, key), keys.seed(0)))
    ids = rng.integers(3, tiny.TEXT.vocab_size, (2, case.batch, 9)).astype(np.int32)
    image = rng.uniform(-1, 1, (case.batch, *size, 3)).astype(np.float32)
    return cfg, params, {"ids": ids[0], "negative": ids[1], "image": image}


def of_loss(case: Case) -> tuple[Any, Any, Any]:
    """A training step's loss, encoders and all, and the gradient of every parameter."""
    cfg, params, asked = video(case)
    shape = case.batch, case.frames, *case.plane, 4
    latent = np.random.default_rng(6).standard_normal(shape).astype(np.float32)

    def run(params: Any, latent: Any, asked: Any) -> Any:
        batch = {**asked, "latent": latent, "null_ids": asked["negative"][0]}
        return jax.value_and_grad(lambda p: stages.loss(p, cfg, batch, keys.seed(3))[0])(params)

    return run, params, (latent, asked)


def of_chain(case: Case) -> tuple[Any, Any, Any]:
    """Two guided steps from noise."""
    cfg, params, asked = video(case)
    shape = case.batch, *case.plane, 4
    reference = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    scales = guidance.make(3.0, 1.5)

    def run(params: Any, reference: Any, asked: Any) -> Any:
        each = keys.per_sample(keys.seed(3), case.batch)
        given = (params, cfg, asked, reference, each, scales)
        return i2v.sample(*given, noise_prior=1.0, steps=2)

    return run, params, (reference, asked)


def of_vae(case: Case) -> tuple[Any, Any, Any]:
    """Both ways."""
    shape = (case.batch, case.frames, *(8 * n for n in case.plane), 3)
    pixels = np.random.default_rng(2).uniform(-1, 1, shape).astype(np.float32)
    shapes = jax.eval_shape(AutoencoderKL(VAE).init, jax.random.key(0), pixels[0, :1])

    def run(params: Any, pixels: Any) -> Any:
        z = latents.encode(params, VAE, pixels)
        return z, latents.decode(params, VAE, z)

    return run, random(shapes["params"]), (pixels,)


def of_encoders(case: Case) -> tuple[Any, Any, Any]:
    """CLIP's text and image encoders, and the image tokens."""
    rng, batch = np.random.default_rng(3), case.batch
    ids = rng.integers(3, tiny.TEXT.vocab_size, (batch, 9)).astype(np.int32)
    pixels = rng.standard_normal((batch, 16, 16, 3)).astype(np.float32)
    text, vision = TextEncoder(tiny.TEXT), VisionEncoder(tiny.VISION)
    project = ImageProjection(tiny.PROJECTION)

    def shapes(key: Any) -> Any:
        seen = vision.init_with_output(key, pixels)
        return {
            "text": text.init(key, ids)["params"],
            "vision": seen[1]["params"],
            "projection": project.init(key, seen[0].hidden_states[-2])["params"],
        }

    def one(params: Any, ids: Any, pixels: Any) -> Any:
        seen = vision.apply({"params": params["vision"]}, pixels)
        tokens = project.apply({"params": params["projection"]}, seen.hidden_states[-2])
        said = text.apply({"params": params["text"]}, ids)
        return said.last, said.pooled, tokens

    run = functools.partial(shards.over_samples, one)
    return run, random(jax.eval_shape(shapes, jax.random.key(0))), (ids, pixels)


def of_vfi(case: Case) -> tuple[Any, Any, Any]:
    from mv2_jax.stages import vfi

    params, cfg = vfi.shipped()
    # Smooth: between frames of noise, rounding alone moves what is found by 8e-5.
    shape = (case.batch, case.frames, 24 + case.plane[0], 40, 3)
    b, t, y, x, c = np.meshgrid(*map(np.arange, shape), indexing="ij")
    frames = np.sin(b + 0.3 * x + 0.2 * y + 0.4 * t + c).astype(np.float32)

    def run(params: Any, frames: Any) -> Any:
        return interpolators.interpolate(params, cfg, frames, 3)

    return run, params, (frames,)


MADE = {"loss": of_loss, "chain": of_chain, "vae": of_vae, "encoders": of_encoders, "vfi": of_vfi}


def difference(case: Case) -> float:
    """The largest difference of any result, as a share of its largest value.

    Or of a thousandth of the largest of all: some gradients are nothing but rounding (a key's bias
    moves no softmax).
    """
    run, params, args = MADE.get(case.kind, of_network)(case)
    want = jax.device_get(quick(run)(params, *args))
    devices = jax.devices()[: math.prod(case.sizes)]
    mesh = sharding.make_mesh(*case.sizes, devices=devices)
    with jax.set_mesh(mesh):
        if case.kind != "vfi":  # its parameters are whole everywhere
            params = sharding.shard_params(params, mesh)
        got = jax.device_get(quick(run)(params, *args))

    floor = 1e-3 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))

    def far(a: Any, b: Any) -> float:
        return float(np.abs(a - b).max() / max(np.abs(b).max(), floor))

    return max(jax.tree.leaves(jax.tree.map(far, got, want)))


if __name__ == "__main__":
    count, first, last = map(int, sys.argv[1:])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    for number in range(first, last):
        each = case(number, count)
        print(f"{number} {each}: {difference(each):.1e}", flush=True)
