"""Which release of this package runs."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path


def version() -> str:
    """The installed package's version; in a checkout that nobody installed, pyproject.toml's."""
    try:
        return metadata.version("mv2-jax")
    except metadata.PackageNotFoundError:
        settings = Path(__file__).resolve().parents[1] / "pyproject.toml"
        return tomllib.loads(settings.read_text(encoding="utf-8"))["project"]["version"]
