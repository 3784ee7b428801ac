"""The first word of a command comes before the libraries that take seconds to load."""

import json
import subprocess
import sys

import pytest

# Runs commands in one process in which JAX cannot be imported: what they say until they try to.
_RUN = """
import contextlib, io, json, sys

class NoJax:
    def find_spec(self, name, path=None, target=None):
        if name == "jax" or name == "torch":
            raise SystemExit(name)

sys.meta_path.insert(0, NoJax())
from mv2_jax import cli

for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = cli.main(arguments)
    except SystemExit as stopped:
        code = str(stopped)
    print(json.dumps([code, said.getvalue()]))
"""


def run(*commands):
    done = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps(commands)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_is_loaded_is_said_before(tmp_path):
    (tmp_path / "clip.mp4").touch()
    pytest.importorskip("optax")
    commands = (
        ("generate", "a red ball bounces over a meadow", "-o", str(tmp_path / "a.mp4")),
        ("explain", "a red ball bounces over a meadow", "-o", str(tmp_path / "a.html")),
        ("eval", "toybox", "--prompts", "2"),
        ("study", "inference", "--prompts", "2", "-o", str(tmp_path / "study")),
        ("bench", "vfi", "toybox"),
        ("rehearse", "paper", "--shrink", "16"),
        ("convert", str(tmp_path / "clip.mp4")),
        ("train", "toybox/vae"),
        ("data", str(tmp_path)),
        ("precompute", str(tmp_path), "--cascade", str(tmp_path), "-o", str(tmp_path / "made")),
    )
    for arguments, (code, said) in zip(commands, run(*commands), strict=True):
        assert code and said.startswith("mv2: loading JAX\n"), (arguments, code, said)


def test_what_is_wrong_is_one_line_without_loading(tmp_path):
    commands = (
        ("generate", "a red ball", "--image", str(tmp_path / "none.png")),
        ("generate", "zebra", "--weights", str(tmp_path)),
        ("eval", "toybox", "--prompts", "1"),
        ("interpolate", str(tmp_path / "none.mp4"), "-o", str(tmp_path / "b.mp4")),
        ("verify", str(tmp_path)),
        ("study", "inference", "--prompts", "1"),
    )
    for arguments, (code, said) in zip(commands, run(*commands), strict=True):
        assert code == 2 and said.count("\n") == 1 and "mv2: error: " in said, (arguments, said)
