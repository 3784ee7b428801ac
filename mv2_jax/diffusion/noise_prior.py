"""The latent noise prior of MagicVideo-V2 (arXiv 2401.04468, sec. 2.2): what a chain starts from.

The paper shifts the mean of the initial noise towards the reference image's latent, and gives
neither formula nor numbers. The forms here are this project's reading:

- "signal" (default): x = lam * a * z + sigma * eps, with a and sigma the process's at the first
  sampled timestep. At lam = 1 this is z noised by the forward process: what the network has seen in
  training for a clip that stands still at z. a is small (0.0397 at t = 999 and 0.0498 at t = 961
  of AnimateDiff's linear schedule), and 0 where a process ends in noise alone (zero terminal SNR,
  rectified flow): there this form does nothing.
- "literal": x = lam * z + eps, the text taken at its word. A lam above a is more signal than the
  network expects at that timestep.

In sigma-space, y = x / alpha, "signal" reads y = lam * z + k * eps (`sigma_space`).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mv2_jax.diffusion.points import Grid
from mv2_jax.diffusion.prediction import expand
from mv2_jax.lookup import one_of

FORMS = ("signal", "literal")


def plain(grid: Grid, eps: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The start of a chain without prior: noise at the scale of the sampler's grid."""
    return eps * grid.init_scale


def initial(
    grid: Grid,
    eps: Float[Array, " B *shape"],
    z: Float[Array, " B *z"],
    lam: ArrayLike = 1.0,
    form: str = "signal",
) -> Float[Array, " B *shape"]:
    """The start x of a whole chain with the noise prior.

    Args:
        grid: the sampler's; its first step says what a is.
        eps: standard normal noise `[B, T, H, W, C]`.
        z: scaled latents of the reference, `[B, H, W, C]` for all frames or like `eps`.
        lam: how strong the prior is, `[]` or `[B]`, traced. Where it is 0 the start is `plain`,
            bit for bit. (So "signal" jumps there by the step between plain noise and noise of
            sqrt(1 - a^2), under 0.2%, where a sampler starts plain chains at unit variance.)
        form: "signal" or "literal" (static).

    Raises:
        ValueError: an unknown form, or shapes that do not fit.
    """
    one_of(form, FORMS, "noise prior")
    z = _per_frame(z, eps)
    strength = expand(jnp.asarray(lam, jnp.float32), eps.ndim)
    if form == "signal":
        shifted = strength * grid.alpha[0] * z + grid.sigma[0] * eps
    else:
        shifted = strength * z + plain(grid, eps)
    return jnp.where(strength == 0, plain(grid, eps), shifted)


def sigma_space(
    eps: Float[Array, " B *shape"],
    z: Float[Array, " B *z"],
    k: ArrayLike,
    lam: ArrayLike = 1.0,
) -> Float[Array, " B *shape"]:
    """The "signal" form for a sampler that carries y = x0 + k * eps: y = lam * z + k * eps.

    The samplers here carry x = alpha * y and take `initial`; this is for others.
    """
    strength = expand(jnp.asarray(lam, jnp.float32), eps.ndim)
    noise = expand(jnp.asarray(k, jnp.float32), eps.ndim)
    return strength * _per_frame(z, eps) + noise * eps


def _per_frame(
    z: Float[Array, " B *z"], eps: Float[Array, " B *shape"]
) -> Float[Array, " B *shape"]:
    """z like eps: one latent for all frames, or one a frame."""
    one = z[:, None] if z.ndim == eps.ndim - 1 else z
    fits = one.ndim == eps.ndim and all(a in (1, b) for a, b in zip(one.shape, eps.shape))
    if not fits:
        raise ValueError(f"a reference latent of {z.shape} does not fit noise of {eps.shape}")
    return jnp.broadcast_to(one, eps.shape)
