"""A checkout is whole by itself, also where another one is installed."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
LINKED = [folder for folder in SETTINGS["package-dir"].values() if folder != "mv2_jax"]

# What setuptools' editable install does: a finder behind all others that knows each package's
# folder. Then every package is asked for; what is printed must not lie in the installed checkout.
PROBE = """
import importlib.util, pathlib, sys
from importlib.machinery import PathFinder

root, *mapped = sys.argv[1:]
folders = dict(pair.split("=") for pair in mapped)

class Editable:
    def find_spec(name, path=None, target=None):
        folder = pathlib.Path(root, folders.get(name, "nowhere"))
        if (folder / "__init__.py").exists():
            return importlib.util.spec_from_file_location(name, folder / "__init__.py")
        parent, _, child = name.rpartition(".")
        found = [f"{root}/{folders[parent]}"] if parent in folders else []
        return PathFinder.find_spec(name, found)

sys.meta_path = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
sys.meta_path.append(Editable)
for name in ("mv2_jax.errors", *folders, "mv2_jax.train.phase", "mv2_jax.train.tasks"):
    print(importlib.import_module(name).__file__)
"""


@pytest.fixture(params=["links", "text files", "nothing"])
def checkout(request, tmp_path):
    """A second checkout, its four links as they are, or as they come where there are no links."""
    root = tmp_path / "second"
    shutil.copytree(
        ROOT / "mv2_jax",
        root / "mv2_jax",
        symlinks=True,
        ignore=shutil.ignore_patterns("weights", "__pycache__"),
    )
    for folder in LINKED:
        shutil.copytree(ROOT / folder, root / folder)
        link = root / "mv2_jax" / folder
        if request.param == "links":
            assert link.is_symlink()
            continue
        link.unlink()
        if request.param == "text files":
            link.write_text(f"../{folder}")
    return root


def imported(checkout, folders):
    """The files that the packages are taken from, with ROOT installed and `checkout` first."""
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    pairs = [f"{name}={folder}" for name, folder in folders.items()]
    command = [sys.executable, "-c", PROBE, str(ROOT), *pairs]
    out = subprocess.run(command, env=env, cwd=checkout.parent, check=True, capture_output=True)
    return out.stdout.decode().split()


def test_packages_of_two_checkouts_do_not_mix(checkout):
    found = imported(checkout, SETTINGS["package-dir"])
    assert len(found) == len(SETTINGS["package-dir"]) + 3
    assert all(Path(file).is_relative_to(checkout) for file in found), found


def test_the_probe_sees_packages_that_mix(checkout):
    """With neither links nor what stands in for them, the four come from the other checkout."""
    for folder in LINKED:
        (checkout / "mv2_jax" / folder).unlink(missing_ok=True)
    (checkout / "mv2_jax" / "__init__.py").write_text("")
    found = imported(checkout, SETTINGS["package-dir"])
    assert any(Path(file).is_relative_to(ROOT) for file in found)


def test_links_are_the_folders_that_are_packaged():
    for name, folder in SETTINGS["package-dir"].items():
        if name != "mv2_jax":
            assert os.readlink(ROOT / "mv2_jax" / name.removeprefix("mv2_jax.")) == f"../{folder}"
