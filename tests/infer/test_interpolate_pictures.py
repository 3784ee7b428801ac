"""What the encoder gets is what the decoder gave, and colours go to the network and back."""

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from mv2_jax.infer import interpolate_cuts as cuts
from mv2_jax.infer import interpolate_layout as layouts
from mv2_jax.infer import interpolate_pictures as pictures
from mv2_jax.infer.interpolate_layout import Layout


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
    for matrix, span in [(1, 1), (9, 2), (layouts.UNNAMED, 0)]:
        layout = Layout(6, 10, chroma, bits, matrix=matrix, range=span)
        planes = _random(layout)
        frame = pictures.write(planes, layout)
        assert (frame.format.name, frame.width, frame.height) == (layout.format, 10, 6)
        assert pictures.same(pictures.read(frame, layout), planes)
        back = pictures.from_rgb(pictures.rgb(planes, layout, np), layout, np)
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
    ours = np.clip(np.asarray(pictures.rgb(planes, layout, np)) * 255, 0, 255)
    # Measured 1.0: swscale cuts to whole numbers in between.
    assert np.abs(ours - theirs.to_ndarray()).max() < 2.0


def test_every_kind_of_frame_finds_the_layout_that_keeps_it():
    wanted = {
        "yuv420p": ("420", 8), "yuvj420p": ("420", 8), "nv12": ("420", 8), "yuv422p": ("422", 8),
        "yuv444p": ("444", 8), "yuv420p10le": ("420", 10), "p010le": ("420", 10),
        "yuv422p12le": ("422", 12), "yuv410p": ("410", 8), "yuv411p": ("411", 8),
        "yuv440p": ("440", 8), "gray": ("420", 8), "gray10le": ("420", 10), "rgb24": ("rgb", 8),
        "bgra": ("rgb", 8), "gbrp10le": ("rgb", 10), "rgb48le": ("rgb", 16), "yuyv422": ("422", 8),
        "yuva420p": ("420", 8), "yuva444p10le": ("444", 10), "ya8": ("420", 8), "pal8": ("rgb", 8),
    }  # fmt: skip
    for form, (chroma, bits) in wanted.items():
        frame = _frame(form)
        layout = layouts.layout_of(frame)
        assert (layout.chroma, layout.bits) == (chroma, bits), form
        assert layout.alpha == (form in ("bgra", "yuva420p", "yuva444p10le", "ya8", "pal8")), form
        planes = pictures.read(frame, layout)
        assert tuple(p.shape for p in planes) == layout.shapes, form
        assert all(p.dtype == layout.dtype for p in planes)
        if form in ("yuv420p", "yuvj420p", "nv12", "p010le", "yuv420p10le"):
            luma = np.frombuffer(frame.planes[0], np.uint8).reshape(6, -1)
            luma = luma[:, : 8 * bits // 8 + 8 * (bits == 10)].view(layout.dtype)[:, :8]
            shift = 6 if form == "p010le" else 0
            np.testing.assert_array_equal(planes[0], luma >> shift)
    assert layouts.layout_of(_frame("yuvj420p")).range == layouts.FULL


def test_packed_rgb_is_only_rearranged():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    layout = layouts.layout_of(frame)
    assert (layout.height, layout.width, layout.format) == (5, 7, "gbrp")
    planes = pictures.read(frame, layout)
    np.testing.assert_array_equal(np.stack(planes, -1)[..., [2, 0, 1]], pixels)
    np.testing.assert_allclose(pictures.rgb(planes, layout, np) * 255, pixels, atol=1e-4)
    for stored in ("bgr24", "bgr0", "gbrp"):
        back = pictures.write(planes, layout, stored).reformat(format="rgb24").to_ndarray()
        np.testing.assert_array_equal(back, pixels)


def test_rgb_becomes_bt709_and_odd_sides_are_lengthened():
    frame = av.VideoFrame.from_ndarray(np.full((5, 7, 3), (255, 0, 0), np.uint8), format="rgb24")
    given = layouts.layout_of(frame)
    layout = layouts.nearest(given, layouts.kinds(["yuv420p", "yuv444p"]))
    assert (layout.height, layout.width, layout.format, layout.matrix) == (6, 8, "yuv420p", 1)
    planes = pictures.convert(pictures.read(frame, given), given, layout)
    assert [int(p[2, 2]) for p in planes] == [63, 102, 240]
    np.testing.assert_array_equal(planes[0][5], planes[0][4])
    np.testing.assert_allclose(pictures.rgb(planes, layout, np)[1, 1], [1, 0, 0], atol=0.01)


@pytest.mark.parametrize(
    "given, known, wanted, said",
    [
        ("yuv440p", "yuv420p yuv422p yuv444p", "yuv444p", ""),
        ("yuv411p", "yuv420p yuv422p yuv444p", "yuv422p", ""),
        ("yuv410p", "yuv420p yuv422p yuv444p", "yuv420p", ""),
        ("yuv422p12le", "yuv420p yuv422p10le", "yuv422p10le", "12 bits become 10"),
        ("yuv444p", "yuv420p yuv420p10le", "yuv420p", "4:4:4 becomes 4:2:0"),
        ("gbrp", "yuv444p bgr0", "gbrp", ""),
        ("gbrp10le", "yuv444p yuv420p10le bgr24", "gbrp", "10 bits become 8"),
        ("gbrp", "yuv444p yuv420p", "yuv420p", "RGB becomes 4:2:0"),
        ("yuva420p", "yuv444p yuva444p10le", "yuva444p10le", ""),
        ("gbrap", "gbrp yuva420p", "yuva420p", "RGB becomes 4:2:0"),
    ],
)
def test_the_nearest_layout_keeps_what_it_can_and_loss_is_said(given, known, wanted, said):
    layout = layouts.layout_of(_frame(given))
    near = layouts.nearest(layout, layouts.kinds(known.split()))
    assert near.format == wanted and layouts.losses(layout, near) == said
    if not said and not layout.alpha:
        planes = pictures.read(_frame(given), layout)
        there = pictures.convert(planes, layout, near)
        assert [p.shape for p in there] == list(near.shapes)
        assert pictures.same(pictures.convert(there, near, layout), planes)  # nothing is lost


def test_what_is_clear_lies_over_white():
    layout = Layout(4, 4, "420", 8, alpha=True, matrix=1, range=1)
    half = tuple(np.full(s, v, np.uint8) for s, v in zip(layout.shapes, (35, 90, 200, 0)))
    half[3][:, 2:] = 255
    plain = layouts.nearest(layout, layouts.kinds(["yuv420p"]))
    luma, blue, red = pictures.convert(half, layout, plain)
    assert (luma[:, :2] == 235).all() and (luma[:, 2:] == 35).all()
    assert blue[0].tolist() == [128, 90] and red[0].tolist() == [128, 200]
    assert pictures.clear(half, layout) and not pictures.clear((*half[:3], luma | 255), layout)


@pytest.mark.parametrize("form, bits", [("gray", 8), ("gray10le", 10), ("gray12le", 12)])
@pytest.mark.parametrize("tagged, span", [(1, 1), (2, 2), (0, layouts.FULL)])
def test_grey_keeps_its_levels_and_its_range(form, bits, tagged, span):
    frame = av.VideoFrame(8, 6, form)
    most = 2 ** frame.format.components[0].bits
    random = np.random.default_rng(0).integers(0, most, frame.planes[0].buffer_size)
    samples = random.astype(np.uint8 if bits == 8 else np.uint16)
    frame.planes[0].update(samples.view(np.uint8)[: frame.planes[0].buffer_size])
    frame.color_range = tagged
    layout = layouts.layout_of(frame)
    assert (layout.range, layout.bits) == (span, bits)
    luma, *chroma = pictures.read(frame, layout)
    given = np.frombuffer(frame.planes[0], layout.dtype).reshape(6, -1)[:, :8]
    np.testing.assert_array_equal(luma, given)
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


def test_fades_and_fast_pans_are_no_cuts():
    wide = _texture(180, 700, seed=0)
    first = wide[:, :320].astype(np.float32)
    black = np.full_like(first, 16)

    def dimmed(share, picture=first):
        return cuts.thumbnail((16 + (picture - 16) * share).astype(np.uint8))

    for before, after in ((0.0, 0.05), (0.0, 0.15), (0.05, 0.15), (0.1, 0.3), (0.5, 1), (0.15, 0)):
        assert not cuts.is_cut(dimmed(before), dimmed(after))
    assert cuts.is_cut(cuts.thumbnail(black.astype(np.uint8)), dimmed(1))
    for moved in (40, 80, 120, 180):
        assert not cuts.is_cut(dimmed(1), dimmed(1, wide[:, moved : moved + 320]))
    assert cuts.is_cut(dimmed(1), dimmed(1, wide[:, 320:640]))
    for other in range(1, 5):
        assert cuts.is_cut(dimmed(1), dimmed(0.5, _texture(180, 320, seed=other)))
