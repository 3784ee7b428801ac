"""Public RIFE weights into this package's tree.

    python -m mv2_jax.convert.rife flownet.pkl mv2_jax/weights/rife/rife.safetensors

made the file that ships.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mv2_jax import files, params
from mv2_jax.config import RIFEConfig, to_dict
from mv2_jax.convert import sources
from mv2_jax.convert.engine import convert
from mv2_jax.convert.tables import rife
from mv2_jax.diffusion import keys
from mv2_jax.models.rife import RIFE


def load(
    path: str | os.PathLike[str], cfg: RIFEConfig | None = None, *, dtype: Any = None
) -> params.Tree:
    """The tree of a `flownet.pkl` (or the same names in safetensors), in `dtype` or as stored.

    Raises:
        FileNotFoundError, ValueError: no such file, a damaged one, or one that is not RIFE 4.25's.
    """
    return convert(sources.load(path), rife.rules(), target(cfg or RIFEConfig()), dtype=dtype)


def target(cfg: RIFEConfig) -> params.Tree:
    """The shapes of RIFE's tree."""
    frame = jax.ShapeDtypeStruct((1, cfg.pad_to, cfg.pad_to, 3), jnp.float32)
    times = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    return jax.eval_shape(RIFE(cfg).init, keys.seed(0), frame, frame, times)["params"]


def main(arguments: list[str]) -> int:
    """Converts one file in half precision; returns the exit code."""
    if len(arguments) != 2:
        print("usage: python -m mv2_jax.convert.rife FLOWNET.pkl OUT.safetensors", file=sys.stderr)
        return 2
    source, out = arguments
    try:
        tree = load(source, dtype=np.float16)
        metadata = {"config": to_dict(RIFEConfig()), "source_sha256": files.sha256(source)}
        params.save(out, tree, metadata)
    except (OSError, ValueError) as error:
        print(f"mv2_jax.convert.rife: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {params.count(tree):,} parameters, sha256 {files.sha256(out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
