"""Vector quantisation: features to the nearest of a learned set of codes (arXiv 1711.00937)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int


class Quantised(NamedTuple):
    """Features replaced by codes.

    `values` [B, h, w, D] passes its gradient straight on to the features. `codebook` and
    `commitment` are mean squared distances: the first pulls codes to features, the second
    features to codes. `index` [B, h, w] int32 says which code.
    """

    values: Float[Array, "B h w D"]
    codebook: Float[Array, ""]
    commitment: Float[Array, ""]
    index: Int[Array, "B h w"]


class Quantiser(nn.Module):
    """`codes` vectors of `width` numbers; features [B, h, w, width] -> `Quantised`, in fp32."""

    codes: int
    width: int

    @nn.compact
    def __call__(self, features: Float[Array, "B h w D"]) -> Quantised:
        # Spread over what normalised features span: codes far from all features are never chosen.
        table = self.param(
            "embedding", nn.initializers.normal(1.0), (self.codes, self.width), jnp.float32
        )
        z, table = features.astype(jnp.float32), table.astype(jnp.float32)
        # |z - e|^2 without |z|^2, which is the same for every code.
        near = jnp.einsum("bhwd,nd->bhwn", z, table, precision=lax.Precision.HIGHEST)
        distance = jnp.square(table).sum(-1)[None, None, None] - 2 * near
        index = jnp.argmin(distance, axis=-1)
        chosen = table[index]
        return Quantised(
            values=z + lax.stop_gradient(chosen - z),
            codebook=jnp.mean(jnp.square(chosen - lax.stop_gradient(z))),
            commitment=jnp.mean(jnp.square(lax.stop_gradient(chosen) - z)),
            index=index.astype(jnp.int32),
        )


def perplexity(index: Int[Array, "*cells"], codes: int) -> Float[Array, ""]:
    """How many codes are in use, by the entropy of their shares: from 1 to `codes`."""
    share = jnp.zeros((codes,)).at[index.reshape(-1)].add(1.0) / index.size
    return jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-10))))
