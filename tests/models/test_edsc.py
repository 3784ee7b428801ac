"""EDSC's own network: its parts against torch.

The public code is not here. Where MV2_EDSC names a checkout of Xianhang/EDSC-pytorch, a test runs
it beside this network on random weights, its CUDA kernel replaced by the transcription of
tests/nn/test_edsc.py; elsewhere that test is skipped.
"""

import importlib
import os
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import params
from mv2_jax.config import EDSCConfig
from mv2_jax.convert.engine import export
from mv2_jax.convert.tables import edsc as table
from mv2_jax.models import edsc
from mv2_jax.stages import vfi_edsc

torch = pytest.importorskip("torch")

TINY = EDSCConfig(widths=(4, 8, 12))
CHECKOUT = os.environ.get("MV2_EDSC", "")


def weights(cfg):
    frame, times = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 1))
    shapes = jax.eval_shape(edsc.EDSC(cfg).init, jax.random.key(0), frame, frame, times)["params"]
    random = np.random.default_rng(0)

    def leaf(shape):
        if len(shape) == 1:
            return random.normal(size=shape) * 0.2
        # A layer is the sum of three convolutions: each a third keeps signals as they are.
        return random.normal(size=shape) * np.sqrt(0.7 / np.prod(shape[:-1]))

    flat = {name: np.float32(leaf(v.shape)) for name, v in params.flatten(shapes).items()}
    return params.unflatten(flat)


@pytest.mark.parametrize("plane", [(1, 4), (5, 7)])
def test_enlargement_keeps_corners_as_torch(plane):
    x = np.float32(np.random.default_rng(0).normal(size=(2, *plane, 3)))
    theirs = torch.nn.functional.interpolate(
        torch.tensor(x).permute(0, 3, 1, 2), scale_factor=2, mode="bilinear", align_corners=True
    )
    np.testing.assert_allclose(edsc._doubled(x), theirs.permute(0, 2, 3, 1), atol=1e-6)


def test_heterogeneous_convolution_is_one_dense_kernel():
    x = np.float32(np.random.default_rng(0).normal(size=(1, 6, 5, 8)))
    layer = edsc.HetConv(12)
    p = jax.tree.map(
        lambda s: np.float32(np.random.default_rng(1).normal(size=s.shape)),
        layer.init(jax.random.key(0), x)["params"],
    )
    # Dense 3x3: the grouped kernel on its diagonal blocks, else the 1x1 kernel in the middle.
    dense = np.zeros((3, 3, 8, 12), np.float32)
    dense[1, 1] = p["conv1x1"]["kernel"][0, 0]
    for group in range(4):
        block = (slice(2 * group, 2 * group + 2), slice(3 * group, 3 * group + 3))
        dense[:, :, *block] += p["conv3x3"]["kernel"][..., block[1]]
        dense[1, 1, *block] -= p["conv1x1_"]["kernel"][0, 0, :, block[1]]
    bias = p["conv3x3"]["bias"] + p["conv1x1"]["bias"] - p["conv1x1_"]["bias"]
    theirs = torch.nn.functional.conv2d(
        torch.tensor(x).permute(0, 3, 1, 2),
        torch.tensor(dense).permute(3, 2, 0, 1),
        torch.tensor(bias),
        padding=1,
    ).permute(0, 2, 3, 1)
    np.testing.assert_allclose(layer.apply({"params": p}, x), theirs, atol=2e-5)


def test_public_names():
    cfg = EDSCConfig()
    frame, times = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 1))
    shapes = jax.eval_shape(edsc.EDSC(cfg).init, jax.random.key(0), frame, frame, times)["params"]
    names = export(jax.tree.map(lambda s: np.zeros(s.shape, np.float16), shapes), table.rules())
    for name, shape in {
        "moduleConv1.0.weight": (32, 6, 3, 3),
        "moduleConv5.4.conv3x3.weight": (512, 128, 3, 3),
        "moduleDeconv4.0.conv1x1_.weight": (256, 128, 1, 1),
        "moduleUpsample2.1.conv1x1.weight": (64, 64, 1, 1),
        "moduleOffset2x.0.weight": (64, 65, 3, 3),
        "moduleMask1.7.weight": (25, 25, 3, 3),
        "moduleBias.0.weight": (64, 64, 3, 3),
    }.items():
        assert names[name].shape == shape, name


def test_the_stage_asks_for_each_time_clips_and_keeps_stills(monkeypatch):
    class Network:
        """In the network's place: twice a blend by time, frames of [0, 1] in and out."""

        def __init__(self, cfg, dtype):
            pass

        def apply(self, variables, first, second, times):
            share = times[:, :, None, None, None]
            return 2 * (first[:, None] * (1 - share) + second[:, None] * share)

    monkeypatch.setattr(vfi_edsc, "EDSC", Network)
    first, second = np.float32(np.random.default_rng(3).uniform(-1, 1, size=(2, 2, 9, 7, 3)))
    second[1] = first[1]
    times = np.float32([[0.25, 0.75]] * 2)
    made = vfi_edsc.between({}, EDSCConfig(), first, second, times)
    np.testing.assert_array_equal(made[1], first[[1, 1]])
    for k, time in enumerate(times[0]):
        wanted = 2 * (first[0] * (1 - time) + second[0] * time) + 1
        np.testing.assert_allclose(made[0, k], wanted.clip(-1, 1), atol=2e-6)


@pytest.mark.skipif(not CHECKOUT, reason="MV2_EDSC names no checkout of Xianhang/EDSC-pytorch")
@pytest.mark.parametrize("any_time", [True, False])
def test_equals_the_public_code(monkeypatch, any_time):
    spec = importlib.util.spec_from_file_location(
        "edsc_transcription", Path(__file__).parents[1] / "nn" / "test_edsc.py"
    )
    transcription = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(transcription)

    def synthesise(image, *rest):
        arrays = [x.detach().numpy().astype(float) for x in (image, *rest)]
        made = [transcription.kernel(*each) for each in zip(*arrays)]
        return torch.tensor(np.stack(made), dtype=torch.float32)

    kernel = types.ModuleType("networks.dsepconv")
    kernel.FunctionDSepconv = synthesise
    for name in ("torchvision", "torchvision.models", "cv2"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "networks.dsepconv", kernel)
    monkeypatch.syspath_prepend(CHECKOUT)
    networks = importlib.import_module("networks")
    networks.dsepconv = kernel
    net = importlib.import_module("networks.EDSC").Network(isMultiple=any_time).eval()
    cfg = EDSCConfig(any_time=any_time)
    tree = weights(cfg)
    state = {name: torch.tensor(x) for name, x in export(tree, table.rules()).items()}
    net.load_state_dict(state)
    first, second = np.float32(np.random.default_rng(2).uniform(size=(2, 1, 30, 32, 3)))
    ours = jax.jit(edsc.EDSC(cfg).apply)({"params": tree}, first, second, np.float32([[0.3]]))
    given = [
        torch.tensor(np.pad(x, ((0, 0), (0, 2), (0, 0), (0, 0)), "edge")[..., ::-1].copy())
        for x in (first, second)
    ]
    given = [x.permute(0, 3, 1, 2) for x in given] + [torch.full((1, 1, 16, 16), 0.3)]
    with torch.inference_mode():
        theirs = net(given).permute(0, 2, 3, 1).numpy()[:, :30, :, ::-1]
    np.testing.assert_allclose(ours[:, 0], theirs, atol=1e-4 * np.abs(theirs).max())
