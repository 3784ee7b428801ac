"""The version, installed or not."""

import tomllib
from importlib import metadata
from pathlib import Path

from mv2_jax.infer import cache, release


def test_a_checkout_that_nobody_installed_has_a_version(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    settings = Path(__file__).parents[2] / "pyproject.toml"
    wanted = tomllib.loads(settings.read_text())["project"]["version"]
    assert release.version() == wanted
    assert f"xla-{wanted}-" in cache.folder().name
