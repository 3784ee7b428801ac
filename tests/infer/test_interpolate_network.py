"""The network inside `mv2 interpolate`, by weights in a file: it makes what it makes elsewhere."""

from fractions import Fraction

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mv2_jax import cli, sharding
from mv2_jax import params as trees
from mv2_jax.config import EMAVFIConfig, RIFEConfig, VAEConfig, to_dict
from mv2_jax.convert import rife as converter
from mv2_jax.errors import InputError
from mv2_jax.infer import interpolate_layout as layouts
from mv2_jax.infer import interpolate_network, media
from mv2_jax.infer import interpolate_pictures as pictures
from mv2_jax.infer.interpolate_layout import Layout
from mv2_jax.stages import vfi

CFG = RIFEConfig(widths=(8, 4), scales=(2, 1), pad_to=16)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    random = np.random.default_rng(7)
    tree = jax.tree.map(
        lambda leaf: (random.normal(size=leaf.shape) * 0.1).astype(np.float32),
        converter.target(CFG),
    )
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    trees.save(path, tree, {"config": to_dict(CFG)})
    return str(path)


def test_new_pictures_are_the_networks_in_the_videos_own_samples(weights):
    layout = layouts.Layout(20, 24, "420", 10, matrix=1, range=1)
    random = np.random.default_rng(0)
    spans = (300, 700), (460, 560), (460, 560)  # colours within black and white
    pair = [
        tuple(random.integers(*r, s).astype(np.uint16) for r, s in zip(spans, layout.shapes))
        for _ in range(2)
    ]
    made = interpolate_network.filler(weights, 1, layout)(*pair, [0.25, 0.5, 0.9])
    assert len(made) == 3
    shown = [np.asarray(pictures.rgb(p, layout, np))[None] * 2 - 1 for p in pair]
    times = np.float32([[0.25, 0.5, 0.9]])
    wanted = np.asarray(vfi.between(trees.load(weights), CFG, *shown, times))[0] * 0.5 + 0.5
    for ours, theirs in zip(made, wanted):
        for a, b in zip(ours, pictures.from_rgb(theirs, layout, np)):
            assert a.dtype == np.uint16
            np.testing.assert_allclose(a.astype(int), b, atol=1)  # of 1023


def test_what_is_beyond_black_and_white_is_blended_past_the_network(monkeypatch):
    """A grey ramp that goes from samples below black to samples above white."""

    def between(params, cfg, first, second, times, **_):
        part = times[..., None, None, None]
        return jnp.clip(first[:, None] * (1 - part) + second[:, None] * part, -1, 1)

    monkeypatch.setattr(interpolate_network.networks, "between", between)
    layout = Layout(4, 256, range=1)
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (4, 256))
    grey = [np.full(shape, 128, np.uint8) for shape in layout.shapes[1:]]
    bright, dark = (ramp, *grey), (np.maximum(ramp, 10) - 10, *grey)
    made = interpolate_network._between(
        {}, bright, dark, np.float32([[0.5]]), cfg=None, layout=layout, views=1, dtype=jnp.float32
    )
    np.testing.assert_allclose(np.asarray(made[0][0])[:, 10:], ramp[:, 10:] - 5.0, atol=1)
    assert all((np.asarray(plane) == 128).all() for plane in made[1:])


def test_a_file_of_weights_makes_a_video_and_a_bad_one_a_line(weights, tmp_path, capsys):
    ramp = np.arange(64, dtype=np.uint8)[None, :, None] * np.ones((48, 1, 3), np.uint8)
    frames = np.stack([ramp, ramp + 60, ramp + 60, ramp + 120])
    media.write_video(tmp_path / "in.mp4", frames, 10)
    out, other = tmp_path / "out.mp4", tmp_path / "vae.safetensors"
    words = ["interpolate", str(tmp_path / "in.mp4"), "-o", str(out), "--vfi"]
    assert cli.main([*words, weights]) == 0
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 7
    capsys.readouterr()
    trees.save(other, {"w": np.ones(3)}, {"config": to_dict(VAEConfig())})
    (tmp_path / "text.safetensors").write_text("no weights")
    out.unlink()
    for name, says in (("vae", "no interpolator has a VAEConfig"), ("text", "cannot use")):
        assert cli.main([*words, str(tmp_path / f"{name}.safetensors")]) == 2
        lines = [x for x in capsys.readouterr().err.splitlines() if "mv2: error:" in x]
        assert len(lines) == 1 and says in lines[0]
        assert not out.exists()


def test_networks_that_share_work_are_asked_for_all_times_of_a_gap(tmp_path, monkeypatch):
    cfg, asked = EMAVFIConfig(), []
    trees.save(tmp_path / "ema.safetensors", {"w": np.ones(2)}, {"config": to_dict(cfg)})

    def between(params, first, second, times, **_):
        asked.append(times.tolist())
        return tuple(np.repeat(plane[None], times.shape[1], axis=0) for plane in first)

    monkeypatch.setattr(interpolate_network, "_between", between)
    layout = Layout(512, 512)
    fill = interpolate_network.filler(str(tmp_path / "ema.safetensors"), 1, layout)
    planes = tuple(np.zeros(shape, np.uint8) for shape in layout.shapes)
    assert len(fill(planes, planes, [0.25, 0.5, 0.75])) == 3
    assert asked == [[[0.25, 0.5, 0.75]]]
    assert len(fill(planes, planes, np.arange(1, 12) / 16)) == 11
    # What is over fills up a second call of the same length, so that no program is new.
    assert [len(times[0]) for times in asked[1:]] == [8, 8]


def test_motion_is_looked_for_on_a_smaller_plane(weights, capsys):
    """--scale 0.5 is RIFE's own: every block at twice its step, the frames as fine as ever."""
    half = interpolate_network.coarser(CFG, Fraction(1, 2), "small")
    assert half == RIFEConfig(widths=(8, 4), scales=(4, 2), pad_to=32)
    layout = Layout(36, 40, "444", 8, matrix=1, range=2)
    random = np.random.default_rng(0)
    pair = [tuple(random.integers(0, 255, s).astype(np.uint8) for s in layout.shapes) for _ in "ab"]
    made = interpolate_network.filler(weights, 1, layout, Fraction(1, 2))(*pair, [0.5])
    shown = [np.clip(np.asarray(pictures.rgb(p, layout, np))[None] * 2 - 1, -1, 1) for p in pair]
    wanted = np.asarray(vfi.between(trees.load(weights), half, *shown, np.float32([[0.5]])))[0, 0]
    beyond = [pictures.rgb(p, layout, np) - (x[0] + 1) / 2 for p, x in zip(pair, shown)]
    beyond = (beyond[0] + beyond[1]) / 2
    for ours, theirs in zip(made[0], pictures.from_rgb(wanted * 0.5 + 0.5 + beyond, layout, np)):
        np.testing.assert_allclose(ours.astype(int), theirs, atol=1)
    with pytest.raises(InputError, match="looks for motion on one plane alone"):
        interpolate_network.coarser(EMAVFIConfig(), Fraction(1, 2), "ema")


@pytest.mark.parametrize("alpha", [False, True])
def test_devices_of_a_mesh_share_pictures_of_whatever_gaps(weights, alpha):
    layout = layouts.Layout(20, 24, "444", 8, alpha=alpha)
    random = np.random.default_rng(1)

    def picture():
        return tuple(random.integers(40, 200, s).astype(np.uint8) for s in layout.shapes)

    seen = [picture() for _ in range(5)]
    gaps = [([0.5], 0), ([1 / 3, 2 / 3], 1), ([], 2), ([0.25, 0.5, 0.75], 3)]
    alone = interpolate_network.filler(weights, 1, layout)
    spread = interpolate_network.filler(weights, 1, layout, mesh=sharding.make_mesh(2, 2, 2))
    begun = [spread(seen[k], seen[k + 1], parts) for parts, k in gaps]
    for (parts, k), made in zip(gaps, begun):
        wanted = alone(seen[k], seen[k + 1], parts)
        assert len(made) == len(wanted) == len(parts)
        for one, other in zip(made, wanted):
            assert len(one) == (4 if alpha else 3)
            for a, b in zip(one, other):
                np.testing.assert_allclose(a.astype(int), b, atol=1)
                assert (a != b).mean() < 0.01
    assert any(np.abs(a.astype(int) - b).max() > 20 for a, b in zip(begun[0][0], seen[0]))


def test_a_video_is_the_same_over_a_mesh(weights, tmp_path, capsys):
    ramp = np.arange(64, dtype=np.uint8)[None, :, None] * np.ones((48, 1, 3), np.uint8)
    frames = np.stack([ramp + 3 * k for k in (0, 1, 1, 2, 3, 4, 6, 9, 12, 13, 15, 17)])
    media.write_video(tmp_path / "in.mp4", frames, 10)
    words = ["interpolate", str(tmp_path / "in.mp4"), "--times", "3", "--vfi", weights]
    shown = []
    for name, mesh in (("one", ()), ("eight", ("--mesh", "auto"))):
        assert cli.main([*words, "-o", str(tmp_path / f"{name}.mkv"), "--crf", "0", *mesh]) == 0
        assert ("on 8 cpu devices, fsdp 8" in capsys.readouterr().err) == bool(mesh)
        with av.open(str(tmp_path / f"{name}.mkv")) as video:
            shown.append([f.to_ndarray(format="gray") for f in video.decode(video=0)])
    one, eight = (np.stack(s).astype(int) for s in shown)
    assert one.shape == eight.shape == (34, 48, 64)
    assert np.abs(one - eight).max() <= 1 and (one != eight).mean() < 0.01
    assert cli.main([*words, "--mesh", "data=3"]) == 2
    assert "--mesh data=3: its sizes multiply to 3" in capsys.readouterr().err
