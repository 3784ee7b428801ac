import json
import re
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
from commands import files, one_line
from PIL import Image

from mv2_jax import bundle, cli
from mv2_jax.errors import InputError
from mv2_jax.infer import media

PROMPT = "a red ball bouncing over the meadow"


def test_help_is_quick_and_loads_no_jax():
    code = (
        "import sys\nfrom mv2_jax import cli\n"
        "try: cli.main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print([m for m in ('jax', 'numpy', 'av', 'flax') if m in sys.modules])"
    )
    for arguments in (["--help"], ["generate", "--help"], ["train", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("usage: mv2") and done.stdout.endswith("[]\n")
        assert done.stderr == ""


def test_python_runs_the_package_as_the_command(here):
    command = [sys.executable, "-m", "mv2_jax", "generat"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mv2: error: unknown command 'generat'; did you mean 'generate'?\n"


def test_bad_input_is_told_before_jax_is_loaded(here):
    code = (
        "import sys\nfrom mv2_jax import cli\n"
        "code = cli.main(['generate', 'a ball', '--weights', 'nowhere'])\n"
        "print(code, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert done.stderr == "mv2: error: no weights at nowhere: there is no cascade.json in it\n"


def test_generate_leaves_video_sheet_and_sidecar(generate, here, capsys):
    assert generate(PROMPT) == 0
    assert files(here) == ["out.json", "out.mp4", "out.png"]
    captured = capsys.readouterr()
    assert captured.out.startswith("out.mp4: 10 frames of 32x32, 1.2 s at 8 a second")
    assert "warning" not in captured.err and "T2I picture, compiling (once)" in captured.err
    side = json.loads((here / "out.json").read_text())
    assert (side["prompt"], side["seed"], side["settings"]["t2i"]["guidance"]) == (PROMPT, 0, 3.0)
    assert side["settings"]["i2v"]["steps"] == 3
    assert media.read_image(here / "out.png").shape[2] == 3
    assert media.read_video(here / "out.mp4", (32, 32), 10, 1 / 8).shape == (10, 32, 32, 3)


def test_stages_are_kept_when_asked_for(generate, here):
    assert generate(PROMPT, "--stages", "-o", "v.mp4") == 0
    kept = ["v.keyframes.mp4", "v.keyframes.png", "v.reference.png", "v.refined.mp4"]
    assert files(here) == ["v.json", *kept[:2], "v.mp4", "v.png", *kept[2:], "v.refined.png"]
    clip = media.read_video(here / "v.keyframes.mp4", (24, 24), 4, 3 / 8)
    assert clip[0].mean() < clip[-1].mean()


def test_sidecar_makes_the_same_video_again(generate, here, capsys):
    changes = ("--seed", 7, "--t2i-guidance", 5, "--between", 1, "--negative", "snow")
    assert generate(PROMPT, *changes) == 0
    capsys.readouterr()
    assert cli.main(["generate", "--from", "out.json"]) == 0
    assert "the frames are the same as before" in capsys.readouterr().out
    assert (here / "out.mp4").read_bytes() == (here / "out-again.mp4").read_bytes()
    assert (here / "out.json").read_text() == (here / "out-again.json").read_text()
    # A flag beside it overrides, and then no comparison is made.
    assert cli.main(["generate", "--from", "out.json", "--seed", "8", "-o", "other.mp4"]) == 0
    assert "before" not in capsys.readouterr().out
    old, new = (json.loads((here / name).read_text()) for name in ("out.json", "other.json"))
    assert new["seed"] == 8 and new["settings"] == old["settings"]
    assert new["result"]["frames_sha256"] != old["result"]["frames_sha256"]


def test_seed_decides_the_frames(generate, here):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert generate(PROMPT, "--seed", seed, "-o", f"{name}.mp4") == 0
    a, b, c = ((here / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_prompts_in_a_batch_equal_those_made_alone(generate, here, capsys, batch):
    prompts = [PROMPT, "the red cube", "a ball in the snow"]
    assert generate(prompts[0], "--seed", 5, "--batch", batch, *prompts[1:]) == 0
    assert files(here) == [f"out-{k}.{s}" for k in (1, 2, 3) for s in ("json", "mp4", "png")]
    assert f"{min(batch, 3)}/3 T2I picture" in capsys.readouterr().err
    assert generate(prompts[1], "--seed", 5, "-o", "alone.mp4") == 0
    assert (here / "alone.mp4").read_bytes() == (here / "out-2.mp4").read_bytes()
    alone, other = (json.loads((here / f"{name}.json").read_text()) for name in ("alone", "out-2"))
    place = {"batch": min(batch, 3), "row": 1} if batch > 1 else {}
    assert other == {**alone, "made_with": {**alone["made_with"], **place}}


def test_own_picture_starts_at_i2v(generate, here, capsys):
    media.write_image(here / "own.png", np.full((40, 64, 3), 200, np.uint8))
    assert generate(PROMPT, "--image", "own.png", "--stages") == 0
    err = capsys.readouterr().err
    assert "I2V" in err and "T2I" not in err
    assert (media.read_image(here / "out.reference.png") == 200).all()
    (here / "out.json").rename(here / "first.json")
    assert cli.main(["generate", "--from", "first.json"]) == 0
    assert "same as before" in capsys.readouterr().out
    media.write_image(here / "own.png", np.full((40, 64, 3), 100, np.uint8))
    assert cli.main(["generate", "--from", "first.json"]) == 0
    captured = capsys.readouterr()
    assert "own.png has changed since" in captured.err and "frames differ" in captured.out


def test_choices_of_an_earlier_video_that_a_picture_skips_are_left_out(generate, here, capsys):
    assert generate(PROMPT, "--t2i-sampler", "euler", "--v2v-sampler", "euler") == 0
    media.write_image(here / "own.png", np.full((40, 64, 3), 200, np.uint8))
    again = ["generate", "--from", "out.json", "--image", "own.png", "-o", "x.mp4"]
    assert cli.main(again) == 0
    assert json.loads((here / "x.json").read_text())["choices"] == {"v2v": {"sampler": "euler"}}
    assert cli.main([*again, "--t2i-sampler", "ddim"]) == 2
    assert "--t2i-sampler has no effect" in capsys.readouterr().err


def test_a_prompt_of_broken_bytes_is_refused_at_once(generate, capsys):
    assert generate("caf\udce9 ball") == 2
    assert "is not text in UTF-8" in capsys.readouterr().err


def test_own_clip_starts_at_v2v(generate, here, capsys):
    clip = np.full((12, 40, 64, 3), 0, np.uint8)
    clip[:] = np.arange(12)[:, None, None, None] * 20
    media.write_video(here / "own.mp4", clip, 8)
    assert generate(PROMPT, "--video", "own.mp4", "--stages") == 0
    err = capsys.readouterr().err
    assert "V2V" in err and "T2I" not in err and "I2V" not in err
    kept = media.read_video(here / "out.keyframes.mp4", (32, 32), 4, 3 / 8)
    levels = kept.mean(axis=(1, 2, 3)) / 20
    np.testing.assert_allclose(levels, [0, 3, 6, 9], atol=0.2)  # in real time: every third frame


def test_size_is_passed_on(generate, here):
    assert generate(PROMPT, "--size", "64x48", "--stages") == 0
    assert json.loads((here / "out.json").read_text())["size"] == [48, 64]
    assert media.read_video(here / "out.mp4", (48, 64), 1, 1).shape == (1, 48, 64, 3)
    assert media.read_image(here / "out.reference.png").shape == (48, 64, 3)


def test_unknown_words_are_named_with_what_is_known(generate, capsys):
    assert generate("a red dog over the medow") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert lines == [
        'mv2: warning: these weights do not know "medow" (did you mean "meadow"?), the thing "dog" '
        "(known: ball, cube); mv2 words lists what they know"
    ]


def test_a_prompt_that_is_too_long_is_told(generate, capsys):
    for words, cut in ((18, False), (19, True)):
        assert generate("ball " * words + " ...") == 0
        assert ("its end is ignored" in capsys.readouterr().err) == cut


def test_existing_outputs_are_replaced_whole(generate, here):
    (here / "out.mp4").write_bytes(b"old")
    assert generate(PROMPT, "-o", "out.mp4", "--force") == 0
    assert (here / "out.mp4").stat().st_size > 500


def test_nothing_is_replaced_unless_forced(generate, here, capsys):
    (here / "out.json").write_text("mine")
    assert generate(PROMPT) == 0
    assert files(here) == ["out-2.json", "out-2.mp4", "out-2.png", "out.json"]
    assert generate(PROMPT, "-o", "out.mp4") == 2
    assert "out.json is there already; --force replaces it" in capsys.readouterr().err
    assert generate(PROMPT, PROMPT) == 0 and (here / "out-2-1.mp4").exists()
    assert (here / "out.json").read_text() == "mine"


def test_files_say_that_they_are_generated(generate, here):
    prompt = "the red cube"
    assert generate(prompt, "--seed", 5) == 0
    assert generate(prompt, "--no-metadata", "-o", "bare.mp4") == 0
    with av.open("out.mp4") as video, Image.open("out.png") as sheet:
        for about in (video.metadata, sheet.text):
            assert about["digital_source_type"] == "trainedAlgorithmicMedia"
            assert "Generated by mv2" in about["comment"] and "tiny" in about["comment"]
            assert about["comment"].endswith("seed 5; prompt: the red cube")
    with av.open("bare.mp4") as video, Image.open("bare.png") as sheet:
        assert "comment" not in video.metadata and not sheet.text


@pytest.fixture
def broken(here):
    media.write_image(here / "good.png", np.zeros((40, 40, 3), np.uint8))
    (here / "bad.png").write_bytes((here / "good.png").read_bytes()[:60])
    (here / "bad.mp4").write_bytes(b"nothing of the kind")
    (here / "bad.json").write_text("{}")
    media.write_image(here / "thin.png", np.zeros((2, 400, 3), np.uint8))
    (here / "folder.mp4").mkdir()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "no prompt"),
        ([""], "the prompt is empty"),
        ([PROMPT, "  "], "the prompt is empty"),
        ([PROMPT, "--image", "none.png"], "none.png: no such file"),
        ([PROMPT, "--image", "bad.png"], "the picture is damaged"),
        ([PROMPT, "--image", "bad.mp4"], "not a picture"),
        ([PROMPT, "--image", "thin.png"], "400x2 pixels is too small"),
        ([PROMPT, "--video", "bad.mp4"], "it is no video"),
        ([PROMPT, "--video", "none.mp4"], "no such file"),
        ([PROMPT, "-o", "nowhere/out.mp4"], "nowhere/out.mp4: no such folder"),
        ([PROMPT, "-o", "folder.mp4"], "folder.mp4: is a directory"),
        ([PROMPT, "-o", "out.avi"], "must end in .mp4"),
        ([PROMPT, "-o", "/proc/out.mp4"], "cannot write /proc/out.mp4"),
        ([PROMPT, "-o", "good.mp4", "--image", "good.png"], "good.png is an input"),
        ([PROMPT, "--size", "33x32"], "33x32 is impossible"),
        ([PROMPT, "--size", "0x0"], "0x0 is impossible"),
        ([PROMPT, "--size", "99999x32"], "99999x32 is impossible"),
        ([PROMPT, "--size", "big"], "WIDTHxHEIGHT"),
        ([PROMPT, "--t2i-steps", "0"], "--t2i-steps is 0; it goes from 1 to 1000"),
        ([PROMPT, "--t2i-steps", "2.5"], "--t2i-steps takes a whole number, not '2.5'"),
        ([PROMPT, "--v2v-strength", "nan"], "--v2v-strength takes a number"),
        ([PROMPT, "--noise-prior", "-1"], "--noise-prior is -1; it goes from 0 to 1"),
        ([PROMPT, "--fps", "0"], "--fps is 0"),
        ([PROMPT, "--seed", "-1"], "--seed takes a whole number"),
        ([PROMPT, "--seed", "9999999999"], "--seed is 9999999999"),
        ([PROMPT, "--batch", "0"], "--batch"),
        ([PROMPT, "--sede", "3"], "did you mean '--seed'?"),
        ([PROMPT, "--seed"], "expected one argument"),
        ([PROMPT, "--image", "good.png", "--t2i-steps", "3"], "--t2i-steps has no effect"),
        (["--from", "none.json"], "no such file"),
        (["--from", "bad.json"], "was not written by mv2 generate"),
        (["--from", "bad.mp4"], "not a JSON file"),
    ],
)
def test_bad_input_gets_one_line_and_code_2(generate, here, broken, capsys, arguments, message):
    before = files(here)
    assert generate(*arguments) == 2
    assert message in one_line(capsys)
    assert files(here) == before


def test_damaged_weights_get_one_line_and_code_2(generate, here, tiny_weights, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_weights, copy)
    content = bytearray((copy / "vae.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "vae.safetensors").write_bytes(content)
    assert generate(PROMPT, "--weights", copy) == 2
    assert "vae.safetensors is damaged" in one_line(capsys)
    (copy / bundle.INDEX).unlink()
    assert generate(PROMPT, "--weights", copy) == 2
    assert "there is no cascade.json" in one_line(capsys)
    assert files(here) == []


def test_wrong_sidecars_get_one_line(generate, here, capsys):
    assert generate(PROMPT) == 0
    side = json.loads((here / "out.json").read_text())
    capsys.readouterr()
    for change, message in (
        ({"promt": "x"}, "unknown key 'promt'; did you mean 'prompt'?"),
        ({"seed": "x"}, "'seed' is missing or of the wrong kind"),
        ({"settings": {"t2i": {"stepz": 3}}}, "t2i has no setting 'stepz'; did you mean 'steps'?"),
        ({"settings": {"t2i": {"steps": -3}}}, "the sidecar: t2i steps is -3"),
        ({"size": [1]}, "'size'"),
        ({"from_image": {"file": "gone.png"}}, "'from_image'"),
        ({"from_image": {"file": "gone.png", "sha256": ""}}, "gone.png: no such file"),
        ({"weights": {"folder": "gone"}}, "no weights at gone"),
    ):
        (here / "bad.json").write_text(json.dumps({**side, **change}))
        assert cli.main(["generate", "--from", "bad.json"]) == 2
        assert message in one_line(capsys)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generat"], "did you mean 'generate'?"),
        (["--wat"], "unknown argument --wat"),
        *(
            ([*command.split(), "x", f"--{flag}", "3"], f"did you mean '--{near}'?")
            for command, flag, near in (
                ("interpolate", "viws", "views"),
                ("explain", "sed", "seed"),
                ("convert", "unt", "unet"),
            )
        ),
    ],
)
def test_wrong_commands_get_one_line(capsys, arguments, message):
    assert cli.main(arguments) == 2
    assert message in one_line(capsys)


def test_an_interrupt_leaves_nothing(generate, here, capsys, fake_cascade, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(fake_cascade, "vfi", interrupted)
    assert generate(PROMPT) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "mv2: error: stopped"
    assert files(here) == []


def test_a_full_disk_leaves_nothing(generate, here, capsys, monkeypatch):
    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(media, "write_image", full)
    assert generate(PROMPT) == 1
    assert "no space left" in capsys.readouterr().err.splitlines()[-1]
    assert files(here) == []


def test_info_lists_the_weights(tiny_weights, capsys):
    assert cli.main(["info", "--weights", str(tiny_weights)]) == 0
    out = capsys.readouterr().out
    assert "weights: tiny" in out and "Apache-2.0; nowhere" in out
    assert "  i2v: 4 frames of 24x24, sampler ddim\n" in out
    assert "\n    guidance rule: apart\n" in out
    assert "\n    process: ScheduleConfig, kind scaled_linear, beta_start 0.00085, " in out
    picture = out[out.index("  t2i:") : out.index("  i2v:")]
    assert "\n    stored: guidance 3\n    the stage's: steps 4\n    usual: guidance_resc" in picture


def test_info_tells_numbers_without_effect_and_a_rule_that_is_not_named(tmp_path, capsys):
    import tiny

    held = tiny.write(tmp_path / "c", tiny.make())
    path = held.folder / bundle.INDEX
    index = json.loads(path.read_text())
    index["stages"]["i2v"]["rule"] = "public"
    del index["stages"]["v2v"]["rule"]
    path.write_text(json.dumps(index))
    assert cli.main(["info", "--weights", str(held.folder)]) == 0
    out = capsys.readouterr().out
    without = "    without effect: image_guidance (the guidance rule 'public' has no scale for the"
    assert without in out[out.index("  i2v:") : out.index("  v2v:")]
    assert "    guidance rule: apart (the folder names none)" in out[out.index("  v2v:") :]


def test_train_hands_over_to_the_trainer(capsys, monkeypatch):
    from mv2_jax.train import cli as train

    asked = {}

    def main(recipe, overrides, **kwargs):
        asked.update(recipe=recipe, overrides=overrides, **kwargs)
        raise InputError("no such recipe")

    monkeypatch.setattr(train, "main", main)
    arguments = ["train", "toybox/vae", "--set", "optim.lr=1e-4", "--set", "a.b=2", "--phase", "x"]
    assert cli.main([*arguments, "--profile", "2:3", "--wandb"]) == 2
    assert one_line(capsys) == "mv2: error: no such recipe"
    assert asked == {
        "recipe": "toybox/vae",
        "overrides": ["optim.lr=1e-4", "a.b=2"],
        "phase": "x",
        "out": None,
        "resume": True,
        "dry": False,
        "profile": "2:3",
        "reports": ("wandb",),
    }


def test_help_lists_every_command_once_and_generate_first(capsys):
    assert cli.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines if re.match(r"  [a-z]+ +[a-z]", line)]
    apart = {"generate", "train", "info", "eval"}
    assert listed[:2] == ["generate", "interpolate"] and sorted(listed) == sorted(
        apart | {*cli.APART}
    )
