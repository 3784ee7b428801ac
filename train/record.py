"""What made a phase's weights, written beside them: settings, versions, code, data, machine."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import jax

from mv2_jax.train import source
from mv2_jax.train.latents import fingerprint

RUN = "run.json"
PACKAGES = ("mv2-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "av")
CODE = ("mv2_jax", "mv2_jax.configs", "mv2_jax.convert", "mv2_jax.train", "mv2_jax.infer")


def of(cfg: Any) -> dict[str, Any]:
    """The record of a phase, ready for JSON."""
    device = jax.devices()[0]
    return {
        "config": json.loads(cfg.to_json()),
        "versions": {"python": platform.python_version(), **_versions()},
        "code": code(),
        "data": data(cfg),
        "devices": {"kind": device.device_kind, "count": jax.device_count()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code() -> str:
    """A SHA-256 over this package's Python files and their names."""
    digest, done = hashlib.sha256(), set()
    for name in CODE:
        root = Path(str(importlib.import_module(name).__path__[0])).resolve()
        for path in sorted(root.rglob("*.py")):
            if path.resolve() not in done:
                done.add(path.resolve())
                digest.update(f"{name}/{path.relative_to(root).as_posix()}\0".encode())
                digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def data(cfg: Any) -> dict[str, Any] | None:
    """The facts of a phase's source (files' names and sizes, a seed, a version) and a fingerprint
    that changes with any of them; None of a phase without one.

    Where the source is no longer there, as on a lost mount, it says so: the weights are not to be
    lost with it.
    """
    if "data" not in cfg:
        return None
    try:
        facts = json.loads(json.dumps(dict(source.of(cfg).facts()), default=str))
    except Exception as error:
        return {"fingerprint": None, "error": f"{type(error).__name__}: {error}"}
    return {"fingerprint": fingerprint(facts), "facts": facts}
