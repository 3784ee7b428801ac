"""What a card can do at most; useful FLOPs are counted by `mv2_jax.infer.planning.flops`."""

from __future__ import annotations

from mv2_jax.infer.planning.flops import count

__all__ = ["count", "peak"]

# Dense bfloat16 with fp32 sums, TFLOP/s, from NVIDIA's datasheets (half of what they give with
# sparsity). The first name that the device's own name contains is taken.
PEAKS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "GH200": 989.4,
    "H200": 989.4,
    "H800": 989.4,
    "B200": 2250.0,
    "A100": 311.8,
    "A800": 311.8,
    "A10G": 70.0,
    "A10": 125.0,
    "A40": 149.7,
    "A6000": 154.8,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def peak(device_kind: str) -> float | None:
    """Dense bf16 TFLOP/s of a card by its name; None for one that is not in the table."""
    found = (value for name, value in PEAKS.items() if name.lower() in device_kind.lower())
    return next(found, None)
