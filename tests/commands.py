"""What tests of the commands share: the one line that refuses, and what lies in a folder.

Their fixtures are conftest's: `here`, an empty folder to work in, and `generate`, the command on a
cascade that stands in for the networks.
"""


def files(folder):
    """The names in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def one_line(capsys):
    """The one line on standard error that says why nothing was done."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("mv2: error: ")
    return captured.err.strip()
