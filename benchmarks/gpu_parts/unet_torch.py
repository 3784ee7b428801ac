"""torch's side of part b, a process of its own: compiles, waits for a line, measures, prints JSON.

`gpu_parts.unet` starts it and says what network to make; it imports nothing of this package.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import sys
import time
from typing import Any

told: dict[str, Any] = json.loads(sys.argv[1])
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", told["cache"])

import torch  # noqa: E402
from diffusers import UNetMotionModel  # noqa: E402

DEVICE = "cpu" if told["cpu"] or not torch.cuda.is_available() else "cuda"
# On a CPU this is a rehearsal, which need not wait for a C++ compiler.
BACKEND = "aot_eager" if DEVICE == "cpu" else "inductor"
DTYPE = torch.float32 if DEVICE == "cpu" else torch.bfloat16


def make() -> torch.nn.Module:
    """diffusers' video UNet with random weights, in the memory layout that is its fastest."""
    down = ["CrossAttnDownBlockMotion" if n else "DownBlockMotion" for n in told["transformers"]]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    torch.manual_seed(0)
    with torch.device(DEVICE):
        module = UNetMotionModel(
            block_out_channels=told["channels"],
            down_block_types=down,
            up_block_types=up,
            layers_per_block=told["layers"],
            cross_attention_dim=told["context"],
            norm_num_groups=told["groups"],
            num_attention_heads=told["heads"],
            motion_num_attention_heads=told["motion_heads"],
            use_motion_mid_block=False,
        )
    return module.to(DTYPE).eval().to(memory_format=torch.channels_last)


def seconds(function: Any, groups: int = 5) -> float:
    """The median of a few runs, by the clock around the device's work."""
    spent = []
    for _ in range(groups):
        synchronize()
        began = time.perf_counter()
        function()
        synchronize()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def main() -> None:
    module, frames, side = make(), told["frames"], told["side"]
    kind = {"device": DEVICE, "dtype": DTYPE}
    x = torch.randn(2, 4, frames, side, side, **kind)
    text = torch.randn(2 * frames, 77, told["context"], **kind)
    t = torch.tensor(681, device=DEVICE)

    def say(mode: str, way: torch.nn.Module, compiling: float) -> None:
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = seconds(lambda: way(x, t, text))
        most = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None
        version = f"{torch.__version__}, diffusers {importlib.metadata.version('diffusers')}"
        made = {"mode": mode, "ms": 1e3 * took, "GiB": most, "compiling": compiling}
        print(json.dumps({**made, "torch": version}), flush=True)

    module(x, t, text)
    say("eager, beside other work", module, 0.0)  # for want of better where compiling takes long
    began, compiled = time.perf_counter(), None
    try:
        compiled = torch.compile(module, backend=BACKEND)
        for _ in range(2):
            compiled(x, t, text)
        synchronize()
    except Exception as error:
        print(f"torch.compile: {error}", flush=True)
        compiled = None
    compiling = time.perf_counter() - began
    sys.stdin.readline()
    say("eager", module, 0.0)
    if compiled is not None:
        say(f"torch.compile, {BACKEND}", compiled, compiling)


main()
