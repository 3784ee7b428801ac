"""`mv2 explain` on networks of nothing: the page holds what it is to, and needs nothing else."""

import base64
import dataclasses
import io
import itertools
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from mv2_jax import cli
from mv2_jax.diffusion import keys, prediction
from mv2_jax.infer import explain, explain_maps, explain_page, generate, mechanisms
from mv2_jax.stages import chain
from mv2_jax.stages import stage as stages
from mv2_jax.text import CLIPTokenizer

PROMPT = "a red ball <bouncing> over a meadow"
NUMBERS = {
    "t2i": {"steps": 2, "guidance": 4.0},
    "i2v": {"steps": 2, "guidance": 4.0, "image_guidance": 1.5, "noise_prior": 1.0}
    | {"image_scale": 1.0, "control_scale": 1.0},
    "v2v": {"steps": 2, "guidance": 4.0, "image_guidance": 1.5, "strength": 0.5}
    | {"image_scale": 1.0, "control_scale": 1.0},
    "vfi": {"between": 0, "fps": 8.0},
}


class Tags(HTMLParser):
    """Demands that every tag is closed in its turn."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


class Bench:
    """Clips of noise in place of the cascade's, other ones for every variant."""

    seconds = dict.fromkeys(NUMBERS, 1.0)

    def __init__(self, *args, idle):
        pass

    def make(self, variant):
        rng = np.random.default_rng(len(variant.name))
        clip = rng.integers(256, size=(1, 3, 48, 48, 3), dtype=np.uint8)
        return generate.Made(clip[:, 0], clip[:, :, ::2, ::2], clip, clip)


def looks(*args, **kwargs):
    rng = np.random.default_rng(0)
    text = rng.uniform(size=(3 if len(args) > 5 else 1, 6, 6, 20)) / 20
    latent, reference = rng.normal(size=(3, 6, 6, 4)), rng.normal(size=(6, 6, 4))
    return explain_maps.Looks([0], np.zeros((1, len(text), 48, 48, 3)), text, latent, reference)


@pytest.fixture
def quick(monkeypatch):
    """The page, nothing of which was made by a network."""
    monkeypatch.setattr(mechanisms, "Bench", Bench)
    monkeypatch.setattr(explain_maps, "of_picture", looks)
    monkeypatch.setattr(explain_maps, "of_clip", looks)
    monkeypatch.setattr(explain_maps, "first_step", lambda four: (0.04, 0.999))
    four = SimpleNamespace(
        tokenizer=tiny.WORDS, params={"vae": {"w": np.zeros(7)}}, idle=lambda stage: {}
    )
    return explain.explain(four, PROMPT, NUMBERS, seed=3, made_with={"device": "none"})


@pytest.fixture(scope="module")
def whole():
    """The page of networks that ran."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield explain.explain(tiny.make(), PROMPT, NUMBERS, seed=3, made_with={"device": "none"})
    jax.config.update("jax_disable_most_optimizations", False)


PAGES = ["quick", pytest.param("whole", marks=pytest.mark.slow)]


@pytest.mark.parametrize("which", PAGES)
def test_page_is_well_formed_and_whole(which, request):
    page, tags = request.getfixturevalue(which), Tags()
    tags.feed(page)
    text = " ".join(tags.text)
    assert tags.open == [] and "<bouncing>" in text and "seed 3; device none" in text
    for variant in (mechanisms.FULL, *mechanisms.OFF):
        assert variant.name in text
    for stage in ("T2I", "I2V", "V2V", "VFI"):
        assert stage in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert "://" not in page and "<script" not in page


@pytest.mark.parametrize("which", PAGES)
def test_its_pictures_are_pictures_and_its_clips_move(which, request):
    page, kinds = request.getfixturevalue(which), {"png": 0, "webp": 0}
    for kind, data in re.findall(r'src="data:image/(\w+);base64,([^"]*)"', page):
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        image.load()
        kinds[kind] += 1
        assert kind != "webp" or image.n_frames == 3
    # Keyframes, refined and final frames, then the full cascade and all that can be switched off.
    assert kinds["webp"] == 3 + 1 + len(mechanisms.OFF)
    # T2I's picture, one look on the way, a map a word for either stage, the prior off and on.
    assert kinds["png"] == 1 + 1 + 2 * 7 + 2


def test_words_are_found_in_both_tokenizers():
    for tokenizer in (tiny.WORDS, CLIPTokenizer()):
        spans = explain_maps.words(tokenizer, "a red pyramid, bouncing")
        assert [word for word, _ in spans] == ["a", "red", "pyramid,", "bouncing"]
        assert spans[0][1] == slice(1, 2)
        assert all(a.stop == b.start for (_, a), (_, b) in itertools.pairwise(spans))
        marked = explain_maps.words(tokenizer, "a (red:1.5) pyramid, [bouncing]")
        assert marked == spans
    long = explain_maps.words(tiny.WORDS, "red " * 30)
    assert len(long) == 18  # what does not fit into the row is not there


def test_heat_lights_where_weights_are():
    image = np.full((8, 8, 3), 100, np.uint8)
    lit = explain_page.heat(image, np.array([[1.0, 0.0], [0.0, 0.0]]))
    assert lit[0, 0].sum() > 2 * lit[7, 7].sum()


def test_bad_input_is_one_line(capsys, tmp_path):
    assert cli.main(["explain", "a ball", "-o", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert cli.main(["explain", "a ball", "--seed", "-1"]) == 2
    assert "--seed is -1" in capsys.readouterr().err
    assert cli.main(["explain", " "]) == 2
    assert "an argument is empty" in capsys.readouterr().err
    assert cli.main(["explain", "a ball", "-o", str(tmp_path / "none" / "x.html")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_pictures_on_the_way_are_decoded_by_t2i_s_own_autoencoder():
    four = tiny.make()
    own = jax.tree.map(lambda x: 0.5 * x, four.params["vae"])
    other = dataclasses.replace(four, params={**four.params, "t2i_vae": own})
    z = np.ones((1, 4, 4, four.picture.stage.unet.in_channels), np.float32)
    assert np.array_equal(four.decode_picture(z), four.decode(z))
    assert np.abs(other.decode_picture(z) - other.decode(z)).max() > 1e-3
    looks = [explain_maps.of_picture(f, PROMPT, 0, NUMBERS["t2i"]) for f in (four, other)]
    assert np.abs(looks[0].believed - looks[1].believed).max() > 1e-3
    np.testing.assert_array_equal(looks[0].text, looks[1].text)


@pytest.mark.slow
def test_it_follows_windows_and_freeinit_as_the_cascade_does():
    four = tiny.make().with_stage("i2v", frames=5)  # the motion modules know 3
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 48, 48, 3)).astype(np.float32)
    given = {**NUMBERS["i2v"], "free_init": 1}
    looks = explain_maps.of_clip(four, PROMPT, 3, picture, given)
    seed = keys.seeds([3])
    once = four.chain("i2v", [PROMPT], seed, {**given, "free_init": 0}, picture)
    cfg, latent = once.cfg, once.end().x
    begun = chain.again(seed, latent, np.int32(0), cfg=cfg, steps=2)
    np.testing.assert_allclose(looks.start, begun.x[0], atol=2e-6)
    # What is believed there is what the stage's own windows make of it.
    point = chain.look_at(cfg, 2, begun)
    told = jax.tree.map(lambda leaf: leaf[-1:], once.conditioning)
    t = np.full((1, 1), point.t, np.float32)
    out = stages.in_windows(once.params, cfg, 5)(begun.x[None], t, told)[0]
    x0 = prediction.to_x0("v", out, begun.x, point.alpha, point.sigma)
    np.testing.assert_allclose(looks.believed[0], four.decode(x0)[0], atol=2e-4)
    assert looks.text.shape[:3] == (5, 4, 4) and looks.text.shape[3] == 20
    np.testing.assert_allclose(looks.text.sum(axis=-1), 1.0, atol=1e-5)


def test_numbers_and_words_are_told():
    four = SimpleNamespace(params={"vae": {"w": np.zeros((2, 3))}})
    words = {"steps": 20, "guidance": 2.5, "image_frames": "0:1,8:0", "control_frames": ""}
    page = explain._numbers(four, {"i2v": words})
    assert "steps 20, guidance 2.5, image_frames 0:1,8:0" in page and "control_frames" not in page
