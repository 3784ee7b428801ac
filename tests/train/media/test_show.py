"""`mv2 data` says what is there, what training would see of it, and what is broken."""

import json

import media_clips
import numpy as np
import pytest
from PIL import Image

from mv2_jax.cli import main


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    folder = media_clips.clips(tmp_path / "clips", 3, 2)
    (folder / "bad.mp4").write_bytes(b"no video")
    (folder / "picture0.txt").write_text("very " * 100)
    return folder


def test_what_a_folder_holds(folder, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    asked = ["data", str(folder), "-o", str(sheet), "--size", "64", "--frames", "22"]
    assert main([*asked, "--set", "aspects=True", "aspect_step=16", "fps=8"]) == 0
    said = capsys.readouterr().out
    assert "3 clips, 2 pictures (Folder)" in said
    assert "clips last 2.5 to 3.5 s, 3 in the middle, 0.15 minutes in all" in said
    assert "frames a second: 8 (3)" in said and "64x48 (2)" in said
    assert "8 captions of" in said and "1 are longer than one row of 75" in said
    assert "clips: 22 frames 64x64 (1), 22 frames 80x48 (1)" in said
    assert "1 clips are too short" in said
    assert "1 files are left out:\n  bad.mp4: it is damaged, or no video" in said
    picture = np.asarray(Image.open(sheet))
    assert picture.shape == (5 * (160 + 14 + 4), 4 * 160, 3)
    assert (picture[14:174, :160] != 255).any() and (picture[:14] < 128).any()


def test_json_is_what_is_told(folder, capsys):
    assert main(["data", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert (found["clips"], found["pictures"], found["without"]) == (3, 2, 0)
    assert found["broken"] == {"bad.mp4": "it is damaged, or no video"}
    assert found["buckets"]["clips"] == {"16 frames 512x512": 3}


def test_bad_input_is_one_line(folder, tmp_path, capsys):
    for asked, says in (
        (["data", str(tmp_path / "none")], "there is no folder"),
        (["data", str(folder), "--set", "fsp=8"], "did you mean 'data.fps'"),
        (["data", str(folder), "--set", "fps=fast"], "expected a value of type float"),
        (["data"], "required: SOURCE"),
    ):
        assert main(asked) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
