"""Pictures, clips, negatives and weights of a command, through the stages and the sidecar."""

import dataclasses
import json

import numpy as np
import pytest

from mv2_jax import bundle, cli
from mv2_jax.config import ControlNetConfig
from mv2_jax.infer import generate, media

PROMPT = "a red ball bouncing over the meadow"


@pytest.fixture
def mv2(tiny_weights, fake_cascade, tmp_path, monkeypatch):
    """Runs `mv2 generate` in an empty folder; gives (exit code, what each stage was given)."""
    monkeypatch.chdir(tmp_path)
    read, seen = bundle.read, {}

    def with_control(folder=None):
        held = read(folder)
        control = dataclasses.replace(held.components["vae"], config=ControlNetConfig())
        return dataclasses.replace(held, components={**held.components, "control": control})

    monkeypatch.setattr(bundle, "read", with_control)

    class Watched(fake_cascade):
        def _level(self, prompts, keys, negative, numbers):
            seen[len(seen)] = {"negative": negative, **numbers}
            return super()._level(prompts, keys, negative, numbers)

    made_with = {"jax": "0", "platform": "cpu", "device": "fake", "dtype": "float32"}
    monkeypatch.setattr(generate, "load", lambda weights, *_: (Watched(weights), made_with))

    def run(*arguments, weights=("--weights", str(tiny_weights))):
        seen.clear()
        code = cli.main(["generate", *weights, *map(str, arguments)])
        return code, dict(zip(("t2i", "i2v", "v2v"), seen.values()))

    return run


def picture(path, level):
    media.write_image(path, np.full((40, 48, 3), level, np.uint8))
    return path


def test_all_of_it_reaches_the_stages_and_comes_again(mv2, tmp_path, capsys):
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
    media.write_video(tmp_path / "depth.mp4", clip, 4)
    flags = ["--look", picture("a.png", 10), "--look", picture("b.png", 250)]
    flags += ["--control", "depth.mp4", "--negative", "snow", "--v2v-negative", "cube"]
    flags += ["--control-scale", "0.5", "--control-end", "0.6", "--image-frames", "0:1,3:0"]
    flags += ["--v2v-control-sees", "keyframes", "--image-start", "0.25"]
    code, seen = mv2(PROMPT, *flags)
    assert code == 0, capsys.readouterr().err
    assert [seen[stage]["negative"] for stage in seen] == ["snow", "snow", "cube"]
    assert "more" not in seen["t2i"]
    for stage in ("i2v", "v2v"):
        given = seen[stage]
        assert given["more"]["looks"].shape == (1, 2, 32, 32, 3)
        np.testing.assert_allclose(given["more"]["looks"][0, 1], 250 / 127.5 - 1, atol=1e-6)
        assert given["more"]["control_image"].shape == (1, 4, 32, 32, 3)
        assert (given["control_scale"], given["control_end"]) == (0.5, 0.6)
        assert (given["image_frames"], given["image_start"]) == ("0:1,3:0", 0.25)
    assert seen["v2v"]["control_sees"] == "keyframes" != seen["i2v"]["control_sees"]
    side = json.loads((tmp_path / "out.json").read_text())
    assert side["negatives"] == {"v2v": "cube"} and len(side["looks"]) == 2
    capsys.readouterr()
    code, again = mv2("--from", "out.json", weights=())
    assert code == 0 and "the frames are the same as before" in capsys.readouterr().out
    assert str(again) == str(seen)
    code, other = mv2("--from", "out.json", "--negative", "ball", "--look", "a.png", weights=())
    assert code == 0 and other["v2v"]["negative"] == "ball"
    assert other["i2v"]["more"]["looks"].shape[1] == 1
    picture("b.png", 249)
    capsys.readouterr()
    assert mv2("--from", "out.json", weights=())[0] == 0
    assert "b.png has changed since; the frames will differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--control", "2=a.png"), "--control: these weights have no control_2"),
        (("--control", "2=a.png", "--control", "2=a.png"), "ControlNet 2 is given two files"),
        (("--look", "none.png"), "none.png"),
        (("--control-frames", "1"), "--control-frames takes FRAME:WEIGHT"),
        (("--i2v-control-sees", "keyframes"), "--i2v-control-sees: unknown 'keyframes'"),
        (("--image", "a.png", "--t2i-negative", "x"), "--t2i-negative has no effect"),
    ],
)
def test_what_cannot_be_is_one_line(mv2, capsys, flags, message):
    picture("a.png", 9)
    assert mv2(PROMPT, *flags)[0] == 2
    assert message in capsys.readouterr().err


def test_words_of_other_tools_are_named_and_not_read(mv2, capsys):
    prompt = "0: a red [cube:ball:0.5] <lora:snow:0.8>, 9: a ball AND BREAK embedding:snow, 2: cube"
    assert mv2(prompt)[0] == 0
    said = capsys.readouterr().err
    assert '"<lora:snow:0.8>" has no effect here: a LoRA is merged by --lora' in said
    assert '"AND" has no effect here: prompts are not composed' in said
    assert '"embedding:snow" has no effect here' in said
    assert "the prompt names frame 9; the keyframes are 0 to 3" in said
    assert "BREAK has no effect: these weights read prompts as one row" in said
    assert "do not know" not in said
    assert mv2("0: a red bal, 2: a cube", "-o", "b.mp4")[0] == 0
    assert 'these weights do not know "bal" (did you mean "ball"?)' in capsys.readouterr().err
