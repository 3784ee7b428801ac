"""Attention against float64 and torch: every implementation that runs here, every mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import sharding
from mv2_jax.nn import flash, kernels
from mv2_jax.nn.attention import attend, choose


def make(b, lq, lk, n, d, seed=0):
    """q, k, v and a cotangent of the output, as NumPy float32."""
    rng = np.random.default_rng(seed)
    shapes = ((b, lq, n, d), (b, lk, n, d), (b, lk, n, d), (b, lq, n, d))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def exact(q, k, v, lengths=None, causal=False):
    """The formula in float64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    scores = np.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(q.shape[-1])
    keys = np.arange(k.shape[1])
    if lengths is not None:
        scores = np.where(keys < np.asarray(lengths)[:, None, None, None], scores, -np.inf)
    if causal:
        scores = np.where(keys <= np.arange(q.shape[1])[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnqk,bknd->bqnd", weights / weights.sum(-1, keepdims=True), v)


def small_blocks(q, k, v, *, lengths=None, causal=False):
    """Chunked attention in blocks of 16, two rows at a time: remainders in every dimension."""
    if lengths is None:
        plan = flash._Plan(causal, False, 16, 2 * 4 * q.shape[2] * 16 * 16)
        lengths = jnp.full(q.shape[:1], k.shape[1])
    else:
        plan = flash._Plan(causal, True, 16, 2 * 4 * q.shape[2] * 16 * 16)
    return flash._chunked(q, k, v, lengths, plan)


FORMS = {
    "xla": functools.partial(attend, impl="xla"),
    "chunked": functools.partial(attend, impl="chunked"),
    "small blocks": small_blocks,
}
SHAPES = [(3, 37, 53, 2, 40), (1, 16, 16, 1, 80), (2, 5, 77, 3, 160), (5, 33, 8, 2, 7)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_formula_at_odd_sizes_and_widths(form, shape):
    q, k, v, _ = make(*shape)
    np.testing.assert_allclose(FORMS[form](q, k, v), exact(q, k, v), atol=2e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_output_and_gradients_equal_torch(form, masked, causal):
    torch = pytest.importorskip("torch")
    q, k, v, g = make(3, 37, 53, 2, 40)
    lengths = np.array([53, 1, 20], np.int32) if masked else None

    def ours(q, k, v):
        out = FORMS[form](q, k, v, lengths=lengths, causal=causal)
        return jnp.sum(out * g), out

    grads, out = jax.jit(jax.grad(ours, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    mask = np.ones((3, 1, 37, 53), bool)
    if masked:
        mask &= np.arange(53) < lengths[:, None, None, None]
    if causal:
        mask &= np.tril(np.ones((37, 53), bool))
    tensors = [torch.tensor(x).double().requires_grad_() for x in (q, k, v)]
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in tensors), attn_mask=torch.tensor(mask)
    ).transpose(1, 2)
    (theirs * torch.tensor(g)).sum().backward()
    np.testing.assert_allclose(out, theirs.detach(), atol=2e-6)
    for got, x in zip(grads, tensors):
        np.testing.assert_allclose(got, x.grad, atol=5e-6)


@pytest.mark.parametrize("form", ["xla", "chunked"])
def test_masked_keys_are_not_seen_and_a_row_without_keys_gives_zeros(form):
    q, k, v, _ = make(2, 6, 9, 2, 8)
    lengths = np.array([4, 0], np.int32)
    out = FORMS[form](q, k, v, lengths=lengths)
    k[0, 4:] = v[0, 4:] = 1e4
    again = FORMS[form](q, k, v, lengths=lengths)
    np.testing.assert_array_equal(out, again)
    np.testing.assert_array_equal(out[1], np.zeros_like(out[1]))
    np.testing.assert_allclose(out[0], exact(q[:1], k[:1, :4], v[:1, :4])[0], atol=2e-6)


@pytest.mark.parametrize("form", ["xla", "chunked"])
def test_large_scores_stay_finite(form):
    q, k, v, _ = make(1, 8, 8, 1, 16)
    out = FORMS[form](q * 300, k * 300, v)
    np.testing.assert_allclose(out, exact(q * 300, k * 300, v), atol=2e-5)


@pytest.mark.parametrize("form", ["xla", "chunked"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_in_and_out_with_softmax_in_fp32(form, dtype):
    q, k, v, _ = (jnp.asarray(x, dtype) for x in make(1, 24, 300, 2, 16))
    out = FORMS[form](q, k, v)
    assert out.dtype == dtype
    want = exact(*(np.asarray(x, np.float32) for x in (q, k, v)))
    # A softmax in bf16 over 300 keys would be off by several times as much.
    bound = 4e-3 if dtype == jnp.bfloat16 else 6e-4
    assert np.abs(np.asarray(out, np.float64) - want).max() < bound


def test_blockwise_memory_forwards_and_backwards():
    length, n, d = 4096, 4, 16
    x = jax.ShapeDtypeStruct((1, length, n, d), jnp.float32)
    scores = 4 * n * length**2

    def loss(q, k, v, impl):
        return jnp.sum(attend(q, k, v, impl=impl) ** 2)

    def temporaries(impl):
        step = jax.jit(jax.grad(functools.partial(loss, impl=impl), argnums=(0, 1, 2)))
        return step.lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert temporaries("chunked") < scores / 8 < scores <= temporaries("xla")


@pytest.mark.parametrize(
    "platform, large",
    [("cpu", "chunked"), ("tpu", "pallas"), ("gpu", "cudnn")],
)
def test_choice_by_platform_and_size(platform, large):
    def q(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    assert choose(q(64, 64, 4, 32), q(64, 64, 4, 32), platform) == "xla"
    assert choose(q(2, 16384, 8, 40), q(2, 16384, 8, 40), platform) == large
    # Many short rows: a kernel's blocks would be padding, the plain form too large.
    assert choose(q(2**15, 32, 8, 40), q(2**15, 32, 8, 40), platform) == "chunked"


def test_cudnn_is_refused_what_it_cannot_do():
    q, k, v, _ = make(1, 8, 8, 1, 16)
    assert not kernels.cudnn_can(q)
    assert not kernels.cudnn_can(jnp.zeros((1, 8, 1, 20), jnp.bfloat16))
    assert kernels.cudnn_can(jnp.zeros((1, 8, 1, 40), jnp.bfloat16))
    with pytest.raises(ValueError, match=r"use impl='chunked'"):
        attend(q, k, v, impl="cudnn")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [(6, 8), (7, 8), (6, 9), (7, 9)])
def test_cudnn_is_given_even_numbers_of_tokens(monkeypatch, tokens, masked, causal):
    """As JAX 0.10 and 0.11 want them for gradients; its plain form stands for the kernel."""
    plain, given = jax.nn.dot_product_attention, []

    def kernel(q, k, v, *, implementation, **options):
        assert implementation == "cudnn"
        given.append((q.shape[1], k.shape[1]))
        return plain(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    monkeypatch.setattr(kernels, "cudnn_can", lambda q: True)
    q, k, v, g = make(2, *tokens, 2, 8)
    lengths = np.array([3, tokens[1]], np.int32) if masked else None

    def run(impl):
        def out(q, k, v):
            made = attend(q, k, v, lengths=lengths, causal=causal, impl=impl)
            return jnp.sum(made * g), made

        return jax.grad(out, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), run("cudnn"), run("xla"))
    assert all(length % 2 == 0 for pair in given for length in pair)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(1, 100, 130, 1, 40), (2, 16, 16, 1, 160)])
def test_the_tpu_kernel_in_interpretation_with_its_padding(shape, masked):
    from jax.experimental.pallas import tpu

    q, k, v, _ = make(*shape)
    lengths = np.array([9, 12][: shape[0]], np.int32) if masked else None
    with tpu.force_tpu_interpret_mode():
        out = attend(q, k, v, impl="pallas", lengths=lengths)
    np.testing.assert_allclose(out, exact(q, k, v, lengths), atol=2e-6)


def test_under_a_mesh_it_wants_a_program_per_device():
    q, k, v, _ = make(1, 4, 4, 2, 8)
    with jax.set_mesh(sharding.make_mesh(8)), pytest.raises(ValueError, match="per_device"):
        attend(q, k, v)


def test_what_does_not_fit_is_refused():
    q, k, v, _ = make(2, 4, 6, 2, 8)
    with pytest.raises(ValueError, match=r"attend: unknown impl 'chunk' .* mean 'chunked'"):
        attend(q, k, v, impl="chunk")
    with pytest.raises(ValueError, match=r"lengths must be \[2\]"):
        attend(q, k, v, lengths=jnp.ones(3, jnp.int32))
    with pytest.raises(ValueError, match="must agree"):
        attend(q[:1], k, v)
    with pytest.raises(ValueError, match="of one type"):
        attend(q, k, jnp.asarray(v, jnp.bfloat16))
    with pytest.raises(ValueError, match=r"wants q \[B, Lq, N, D\]"):
        attend(q[0], k, v)
