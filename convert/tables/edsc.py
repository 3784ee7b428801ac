"""EDSC as Xianhang/EDSC-pytorch saves it (`EDSC_s_l1.ckpt`, `EDSC_m.ckpt`, under `model_state`)."""

from __future__ import annotations

from mv2_jax.convert.engine import Rule, conv, under

HEADS = {
    "moduleVertical{s:1|2}": "vertical{s}",
    "moduleHorizontal{s:1|2}": "horizontal{s}",
    "moduleOffset{s:1|2}{axis:x|y}": "offset{s}{axis}",
    "moduleMask{s:1|2}": "mask{s}",
    "moduleBias": "bias",
}


def rules(prefix: str = "") -> list[Rule]:
    """The table of the whole network; `prefix` is what the file puts before every name."""
    part = "{part:conv3x3|conv1x1|conv1x1_}"
    table = conv("moduleConv1.0", "body/conv1_0")
    for source, name in (("Conv", "conv"), ("Deconv", "deconv"), ("Upsample", "upsample")):
        table += conv(f"module{source}{{i}}.{{j}}.{part}", f"body/{name}{{i}}_{{j}}/{{part}}")
    for source, name in HEADS.items():
        table += conv(f"{source}.{{j}}", f"heads/{name}/conv_{{j}}")
    return under(table, prefix)
