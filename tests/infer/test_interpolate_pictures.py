"""What the encoder gets is what the decoder gave, and colours go to the network and back."""

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from mv2_jax.infer import interpolate_cuts as cuts
from mv2_jax.infer import interpolate_pictures as pictures
from mv2_jax.infer.interpolate_pictures import Layout


def _random(layout, seed=0):
    random = np.random.default_rng(seed)
    most = 2**layout.bits
    return tuple(random.integers(0, most, size=s).astype(layout.dtype) for s in layout.shapes)


def _frame(form, height=6, width=8, seed=0):
    frame = av.VideoFrame(width, height, form)
    random = np.random.default_rng(seed)
    for plane in frame.planes:
        plane.update(random.integers(16, 235, size=plane.buffer_size, dtype=np.uint8))
    return frame


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("chroma", ["420", "422", "444"])
def test_planes_survive_files_frames_and_colours_exactly(chroma, bits):
    for matrix, span in [(1, 1), (9, 2), (pictures.UNNAMED, 0)]:
        layout = Layout(6, 10, chroma, bits, matrix=matrix, range=span)
        planes = _random(layout)
        frame = pictures.write(planes, layout)
        assert (frame.format.name, frame.width, frame.height) == (layout.format, 10, 6)
        assert pictures.same(pictures.read(frame, layout), planes)
        back = pictures.planes(pictures.rgb(planes, layout), layout)
        assert pictures.same(back, planes)


@pytest.mark.parametrize("matrix, space", [(1, Colorspace.ITU709), (5, Colorspace.ITU601)])
@pytest.mark.parametrize("span, range_", [(1, ColorRange.MPEG), (2, ColorRange.JPEG)])
def test_colours_are_those_of_swscale(matrix, space, span, range_):
    layout = Layout(6, 10, "444", 8, matrix=matrix, range=span)
    planes = _random(layout)
    theirs = pictures.write(planes, layout).reformat(
        format="rgb24", src_colorspace=space, src_color_range=range_,
        dst_color_range=ColorRange.JPEG,
    )  # fmt: skip
    ours = np.clip(np.asarray(pictures.rgb(planes, layout)) * 255, 0, 255)
    # Measured 1.0: swscale cuts to whole numbers in between.
    assert np.abs(ours - theirs.to_ndarray()).max() < 2.0


def test_every_kind_of_frame_finds_a_layout_and_keeps_what_it_can():
    wanted = {
        "yuv420p": ("420", 8), "yuvj420p": ("420", 8), "nv12": ("420", 8), "yuv422p": ("422", 8),
        "yuv444p": ("444", 8), "yuv420p10le": ("420", 10), "p010le": ("420", 10),
        "yuv422p12le": ("422", 10), "yuv410p": ("420", 8), "gray": ("420", 8), "rgb24": ("420", 8),
        "bgra": ("420", 8), "gbrp10le": ("420", 10), "yuyv422": ("422", 8),
    }  # fmt: skip
    for form, (chroma, bits) in wanted.items():
        frame = _frame(form)
        layout = pictures.layout_of(frame)
        assert (layout.chroma, layout.bits) == (chroma, bits), form
        planes = pictures.read(frame, layout)
        assert tuple(p.shape for p in planes) == layout.shapes, form
        if form in ("yuv420p", "yuvj420p", "nv12", "p010le", "yuv420p10le"):
            luma = np.frombuffer(frame.planes[0], np.uint8).reshape(6, -1)
            luma = luma[:, : 8 * bits // 8 + 8 * (bits == 10)].view(layout.dtype)[:, :8]
            shift = 6 if form == "p010le" else 0
            np.testing.assert_array_equal(planes[0], luma >> shift)
    assert pictures.layout_of(_frame("yuvj420p")).range == pictures.FULL


def test_rgb_becomes_bt709_and_odd_sides_are_lengthened():
    frame = av.VideoFrame.from_ndarray(np.full((5, 7, 3), (255, 0, 0), np.uint8), format="rgb24")
    layout = pictures.layout_of(frame)
    assert (layout.height, layout.width) == (6, 8)
    planes = pictures.read(frame, layout)
    assert [int(p[2, 2]) for p in planes] == [63, 102, 240]
    np.testing.assert_array_equal(planes[0][5], planes[0][4])
    np.testing.assert_allclose(pictures.rgb(planes, layout)[1, 1], [1, 0, 0], atol=0.01)


@pytest.mark.parametrize("form, bits", [("gray", 8), ("gray10le", 10), ("gray12le", 10)])
@pytest.mark.parametrize("tagged, span", [(1, 1), (2, 2), (0, pictures.FULL)])
def test_grey_keeps_its_levels_and_its_range(form, bits, tagged, span):
    frame = av.VideoFrame(8, 6, form)
    most = 2 ** frame.format.components[0].bits
    random = np.random.default_rng(0).integers(0, most, frame.planes[0].buffer_size)
    samples = random.astype(np.uint8 if bits == 8 else np.uint16)
    frame.planes[0].update(samples.view(np.uint8)[: frame.planes[0].buffer_size])
    frame.color_range = tagged
    layout = pictures.layout_of(frame)
    assert (layout.range, layout.bits) == (span, bits)
    luma, *chroma = pictures.read(frame, layout)
    given = np.frombuffer(frame.planes[0], layout.dtype).reshape(6, -1)[:, :8]
    given = given >> 2 if form == "gray12le" else given
    np.testing.assert_allclose(luma.astype(int), given, atol=int(form == "gray12le"))
    assert all((plane == 2 ** (bits - 1)).all() for plane in chroma)


def _texture(height, width, seed):
    """A luma plane of soft shapes, large and small."""
    random = np.random.default_rng(seed)
    total = np.full((height, width), 120.0)
    for cell, level in ((40, 60), (12, 40)):
        shape = (height // cell + 2, width // cell + 2)
        coarse = Image.fromarray(random.normal(size=shape).astype(np.float32) * level)
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(total, 0, 255).astype(np.uint8)


def test_cuts_are_told_from_motion_flashes_and_stillness():
    wide = _texture(180, 400, seed=0)

    def thumb(x):
        return cuts.thumbnail(x)

    first = wide[:, 30:350]
    for moved in (first, wide[:, 45:365], wide[:, 60:380], np.roll(first, 12, axis=0)):
        assert not cuts.is_cut(thumb(first), thumb(moved))
    dimmer = (first * 0.9).astype(np.uint8)
    assert not cuts.is_cut(thumb(first), thumb(dimmer))
    for other in range(1, 5):
        assert cuts.is_cut(thumb(first), thumb(_texture(180, 320, seed=other)))
    black, white = np.zeros((180, 320), np.uint8), np.full((180, 320), 235, np.uint8)
    assert cuts.is_cut(thumb(black), thumb(white)) and cuts.is_cut(thumb(first), thumb(black))
    assert not cuts.is_cut(thumb(black), thumb(black + 3))
    for shape in ((16, 16), (17, 500), (500, 17), (1, 3)):
        assert not cuts.is_cut(thumb(np.zeros(shape, np.uint8)), thumb(np.ones(shape, np.uint8)))


def test_ten_bits_give_the_same_thumbnail():
    luma = _texture(90, 160, seed=1)
    deep = cuts.thumbnail(luma.astype(np.uint16) * 4, bits=10)
    np.testing.assert_allclose(cuts.thumbnail(luma), deep, atol=1e-3)
