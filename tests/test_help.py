"""Every command's help says of each number its default and its range."""

import re

import pytest

from mv2_jax import cli

COMMANDS = [(name,) for name in ("generate", "train", "info", "eval", *cli.APART)]
WITHOUT = {"train", "info", "verify", "export", "bench", "words"}  # bench is a group
OPTION = re.compile(r"^  --?[\w-]+(?:, --[\w-]+)? \[?([NXS])(?:,\.\.\.)?\]? +(.+)$", re.M)
TOLD = re.compile(r"\([^()]+; [^()]+\)|; \d+ to \d+$")  # (default; range)


@pytest.mark.parametrize("command", [*COMMANDS, ("bench", "vfi")])
def test_numbers_have_their_default_and_range(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    options = OPTION.findall(capsys.readouterr().out)
    assert bool(options) == (command[-1] not in WITHOUT)
    assert not [words for _, words in options if not TOLD.search(words)]
