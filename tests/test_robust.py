"""What stops a command, or should: empty values, devices, signals, full disks, closed pipes."""

import os
import signal
import subprocess
import sys
import time

import pytest
from commands import files, one_line

from mv2_jax import cli
from mv2_jax.infer import media

PROMPT = "a red ball bouncing over the meadow"


@pytest.mark.parametrize(
    "arguments, flag",
    [
        (["generate", PROMPT, "--image", ""], "--image"),
        (["generate", PROMPT, "--image="], "--image"),
        (["generate", PROMPT, "-o", " "], "-o"),
        (["interpolate", "in.mp4", "--vfi", ""], "--vfi"),
        (["train", "smoke", "--out", ""], "--out"),
        (["convert", "--unet", ""], "--unet"),
        (["info", "--weights="], "--weights"),
    ],
)
def test_an_empty_value_is_an_error_for_every_option(here, capsys, arguments, flag):
    assert cli.main(arguments) == 2
    assert one_line(capsys) == f"mv2: error: {flag} has an empty value; is a variable unset?"


@pytest.mark.parametrize("flag", ["--image", "--video", "--from"])
def test_a_device_is_no_file(here, capsys, flag):
    assert cli.main(["generate", PROMPT, flag, "/dev/zero"]) == 2
    assert "/dev/zero: it is no ordinary file" in one_line(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["interpolate", "IT", "-o", "x.mp4"],
        ["convert", "IT"],
        ["convert", "--unet", "IT", "-o", "x"],
    ],
)
def test_a_pipe_is_no_file(here, capsys, arguments):
    """Nobody writes into it: to open it would be to wait for ever."""
    os.mkfifo("pipe.safetensors")
    words = [word.replace("IT", "pipe.safetensors") for word in arguments]
    assert cli.main(words) == 2
    assert "it is no ordinary file" in one_line(capsys)


@pytest.fixture
def heeded():
    """Signals as a terminal's; under nohup, or in a script's background, they are ignored."""
    usual = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    was = {name: signal.signal(name, handler) for name, handler in usual.items()}
    yield
    for name, handler in was.items():
        signal.signal(name, handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_it_writes_leaves_nothing(heeded, generate, here, capsys, monkeypatch, name):

    def told(path, *_):
        path.write_bytes(b"half")
        signal.raise_signal(signal.Signals[name])

    monkeypatch.setattr(media, "write_image", told)
    assert generate(PROMPT) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "mv2: error: stopped"
    assert files(here) == []


def test_an_error_that_an_interrupt_became_is_no_traceback(heeded, here, capsys, monkeypatch):
    def run(arguments):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot import name 'array'") from None

    monkeypatch.setattr(cli, "_command", run)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "mv2: error: stopped\n"


def test_errors_of_the_disk_name_the_file_and_no_number(here, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "out.mp4")

    monkeypatch.setattr(cli, "_command", full)
    assert cli.main(["info"]) == 1
    assert one_line(capsys) == "mv2: error: out.mp4: no space left on device"


def test_output_that_nobody_reads_is_no_error(tiny_weights):
    command = [sys.executable, "-m", "mv2_jax", "info", "--weights", str(tiny_weights)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        done.stdout.close()
        assert done.stderr.read() == b"" and done.wait() == 141


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("writing", [False, True])
def test_a_signal_amid_an_import_is_no_crash(tmp_path, name, writing):
    """PyTorch and JAX abort where an exception comes out of their loading."""
    body = "except BaseException as e:\n print(type(e)); raise\nprint('went on')"
    loaded = f"import signal\ntry: signal.raise_signal(signal.{name})\n{body}"
    (tmp_path / "loaded.py").write_text(loaded)
    half = "with files.whole('half') as scratch:\n  scratch.write_text(''); import loaded"
    code = (
        "import signal, sys\nsys.path.insert(0, '.')\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mv2_jax import cli, files\n"
        f"def run(_):\n {half if writing else 'import loaded'}\n"
        "cli._command = run\nsys.exit(cli.main(['info']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "mv2: error: stopped\n")
    assert done.stdout == ("<class 'KeyboardInterrupt'>\n" if writing else "")
    assert not [path for path in tmp_path.iterdir() if "half" in path.name]


def test_an_interrupt_in_a_destructor_is_not_lost(heeded, here, capsys, monkeypatch):
    class Ends:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def run(_):
        made = Ends()
        del made
        time.sleep(10)

    monkeypatch.setattr(cli, "_command", run)
    began = time.monotonic()
    assert cli.main(["info"]) == 130 and time.monotonic() - began < 5
    assert capsys.readouterr().err == "mv2: error: stopped\n"


def test_an_interrupt_while_it_starts_is_no_traceback():
    code = (
        "import sys, signal\nsys.argv = ['mv2', 'info']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Slow:\n"
        " def find_spec(self, name, *_):\n"
        "  if name == 'mv2_jax.cli': signal.raise_signal(signal.SIGINT)\n"
        "import mv2_jax.__main__ as entry\nsys.meta_path.insert(0, Slow())\nentry.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and done.stderr == ""
