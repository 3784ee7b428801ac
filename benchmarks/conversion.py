"""What `mv2 convert` costs at full size: seconds, and peak memory beside the largest component.

    python benchmarks/conversion.py            # SD1.5 with everything attached, about 5 GB each way
    python benchmarks/conversion.py --sdxl     # and SDXL for T2I, about 12 GB each way

The sources are random numbers in half precision under the public names and shapes; nothing is
fetched. The command runs as a process of its own. It should take under 120 seconds on two cores
without SDXL, and under 1.3 times the largest component in its stored type, imports and all.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cases import BIG_G, SDXL

from mv2_jax import bundle, tensorfile
from mv2_jax.config import (
    ControlNetConfig,
    ImageProjectionConfig,
    MotionConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
    VisionConfig,
)
from mv2_jax.convert import param_shapes
from mv2_jax.convert.engine import exported, under
from mv2_jax.convert.rules import Table
from mv2_jax.convert.tables import clip, controlnet, ip_adapter, ip_attention, motion, unet, vae
from mv2_jax.params import flatten
from mv2_jax.tensorfile import Spec

SECONDS, SHARE = 120.0, 1.3
SPATIAL = UNetConfig(motion=MotionConfig(mid_block=True), image_tokens=True)  # v2, the larger


def sources(sdxl: bool) -> Iterator[tuple[str, Any, Table]]:
    """(file, tree, table that names its tensors) of every source."""
    whole = param_shapes.unet(SPATIAL)
    text, vision = clip.transformers_text("text_model."), clip.transformers_vision("vision_model.")
    yield "pipeline/unet/diffusion_pytorch_model", whole["spatial"], unet.rules(SPATIAL)
    yield "pipeline/vae/diffusion_pytorch_model", param_shapes.vae(VAEConfig()), vae.rules()
    yield "pipeline/text_encoder/model", param_shapes.text(TextConfig()), text
    yield "motion", whole["motion"], motion.diffusers()
    adapter = {
        "projection": param_shapes.image_projection(ImageProjectionConfig()),
        "unet": whole["image_attn"],
    }
    table = under(ip_adapter.original_resampler(), "image_proj.", "projection/")
    yield "adapter", adapter, [*table, *under(ip_attention.rules(SPATIAL), target="unet/")]
    yield "vision", param_shapes.vision(VisionConfig()), vision
    control = ControlNetConfig()
    yield "controlnet", param_shapes.controlnet(control), controlnet.rules(control)
    if sdxl:
        yield (
            "sdxl/unet/diffusion_pytorch_model",
            param_shapes.unet(SDXL)["spatial"],
            unet.rules(SDXL),
        )
        yield "sdxl/vae/diffusion_pytorch_model", param_shapes.vae(VAEConfig()), vae.rules()
        yield "sdxl/text_encoder/model", param_shapes.text(TextConfig()), text
        yield "sdxl/text_encoder_2/model", param_shapes.text(BIG_G), text


def write(path: Path, tree: Any, table: Table) -> None:
    """A file of random numbers, one tensor in memory at a time."""
    leaves = flatten(tree)
    steps = exported(leaves, table)

    def shape(rule: Any, names: tuple[str, ...]) -> tuple[int, ...]:
        hollow = [np.broadcast_to(np.float16(0), leaves[name].shape) for name in names]
        return rule.operation.backward(*hollow).shape

    specs = {
        key: Spec(shape(rule, names), np.dtype(np.float16)) for key, (rule, names) in steps.items()
    }
    rng = np.random.default_rng(0)
    numbers = (
        (key, rng.standard_normal(spec.shape, np.float32).astype(np.float16))
        for key, spec in specs.items()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    tensorfile.write(path, specs, numbers, {"format": "pt"})


def main() -> int:
    """Prints what it cost, and says whether that is within the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sdxl", action="store_true", help="SDXL for T2I too")
    parser.add_argument("--work", type=Path, help="where to work (a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as scratch:
        root, out = Path(scratch) / "sources", Path(scratch) / "cascade"
        for name, tree, table in sources(args.sdxl):
            write(root / f"{name}.safetensors", tree, table)
        given = {"unet": "pipeline", "motion": "motion", "image-adapter": "adapter"}
        given |= {"image-encoder": "vision", "controlnet": "controlnet"}
        given |= {"t2i": "sdxl"} if args.sdxl else {}
        run = "import sys; from mv2_jax.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", run, "convert", "-o", str(out)]
        for flag, name in given.items():
            path = root / name
            command += [f"--{flag}", str(path if path.is_dir() else f"{path}.safetensors")]
        begin = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # KB on Linux
        made = bundle.read(out)
        sizes = {c.file: (out / c.file).stat().st_size for c in made.components.values()}
    largest = max(sizes.values())
    print(
        f"{sum(sizes.values()) / 1e9:.2f} GB in {seconds:.0f} s; peak memory {peak / 1e9:.2f} GB,"
    )
    print(f"{peak / largest:.2f} times the largest component ({largest / 1e9:.2f} GB)")
    return 0 if peak < SHARE * largest and (args.sdxl or seconds < SECONDS) else 1


if __name__ == "__main__":
    sys.exit(main())
