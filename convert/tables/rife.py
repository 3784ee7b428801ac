"""RIFE 4.25 and 4.26 as hzwer/Practical-RIFE saves it (`flownet.pkl`)."""

from __future__ import annotations

from mv2_jax.convert.engine import Ignore, Rule, conv, dense


def rules() -> list[Rule | Ignore]:
    """The table of the whole network. The parts that only training used are left out."""
    return [
        *conv("encode.cnn{j:0|1|2}", "encode/cnn{j}"),
        *dense("encode.cnn3", "encode/cnn3", op="conv_transpose"),
        *conv("block{i}.conv0.{j}.0", "block{i}/conv0_{j}_0"),
        *conv("block{i}.convblock.{j}.conv", "block{i}/convblock_{j}/conv"),
        Rule("block{i}.convblock.{j}.beta", "block{i}/convblock_{j}/beta", "channels"),
        *dense("block{i}.lastconv.0", "block{i}/lastconv_0", op="conv_transpose"),
        Ignore("teacher.{x:**}", "a block that saw the true frame, for training"),
        Ignore("caltime.{x:**}", "guesses the time of a frame, for training"),
    ]
