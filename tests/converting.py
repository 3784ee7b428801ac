"""`mv2 convert` on small checkpoints, for the tests of what it makes of them."""

from mv2_jax import cli

SIZES = ["--t2i-size", "32x32", "--i2v-size", "24x24", "--v2v-size", "32x32", "--frames", "4"]


def convert(*arguments):
    return cli.main(["convert", *map(str, arguments), *SIZES])


def refused(capsys, *arguments):
    """The one line that refuses these arguments, which write nothing."""
    capsys.readouterr()  # what libraries said while they saved
    assert convert(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mv2: error: ")
    return lines[0]
