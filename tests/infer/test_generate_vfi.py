"""The last stage by name: 32 keyframes become 94 frames, or stay 32 and last as long."""

import json

import pytest

from mv2_jax import cli


def test_thirty_two_keyframes_become_94_frames_or_none(
    tiny_weights, fake_cascade, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["generate", "a red ball", "--weights", str(tiny_weights), "--frames", "32"]
    seconds = []
    for flags, frames in ((["--vfi", "rife"], 94), (["--vfi", "none"], 32)):
        assert cli.main([*words, *flags, "-o", "out.mp4", "--force"]) == 0
        side = json.loads((tmp_path / "out.json").read_text())
        assert side["result"]["frames"] == frames
        assert side["choices"]["vfi"] == {"network": flags[1]}
        assert side["settings"]["vfi"] == {"between": 2, "fps": 8}
        seconds.append((frames - 1) / side["result"]["fps"])
    assert seconds[0] == pytest.approx(seconds[1])
    capsys.readouterr()
    assert cli.main(["generate", "--from", "out.json"]) == 0
    assert "the frames are the same as before" in capsys.readouterr().out
    assert cli.main([*words, "--vfi", "rive"]) == 2
    assert "did you mean 'rife'" in capsys.readouterr().err
