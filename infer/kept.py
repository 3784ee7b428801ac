"""Compiled programs that are kept whole between runs of a command.

JAX's own cache spares the compiling, but its key is the lowered program, so that each run traces
and lowers every network anew only to find what it has. Here the key is what a program is made from:
the source of this package, the versions beneath it, the device, the function's name, its static
arguments and its shapes, and what the compiler is told. A hit costs one file.

The folder may be in a bucket (`mv2_jax.remote`). Processes that share a mesh keep each its own part
of a program, and take it where all of them have theirs: XLA's compilers may wait for one another.

The key knows nothing of code outside the package. So only the commands keep programs, a cascade
that is loaded by `mv2_jax.cascade.load` keeps none, and programs with a sampler, a process or the
like of one's own in them are not kept. A file holds machine code, as those of JAX's cache do; the
folder is its user's alone to write.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import platform
import shutil
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable as serial
from jax.sharding import Mesh, NamedSharding

from mv2_jax import files, programs
from mv2_jax.compiler import Options
from mv2_jax.errors import InputError
from mv2_jax.infer import cache
from mv2_jax.programs import usual_device
from mv2_jax.remote import Remote
from mv2_jax.train import processes

_CODE = [Path(programs.__file__).parent, Path(__file__).parent]  # two places where it is editable
_SOURCES = 4  # versions of the package whose programs stay, those last written to
_hits = 0


class Kept:
    """Programs on one device or a `mesh`, in a folder: `mv2_jax.programs.Programs` asks it."""

    def __init__(self, folder: Path | Remote, mesh: Mesh | None = None) -> None:
        self._devices = [usual_device()] if mesh is None else list(mesh.devices.flat)
        self._several = jax.process_count() > 1 and len(self._devices) > 1
        self._all = folder / "kept"
        self._folder = self._all / _made_of()

    def name(
        self, function: Any, static: dict[str, Any], signature: Any, options: Options
    ) -> str | None:
        """The key of a program; None for one that is not to be kept.

        Args:
            signature: the arguments' structure, and each leaf's (type, sharding), None for the
                usual device (`programs.signature`).
            options: what the compiler is told (`mv2_jax.compiler`).
        """
        structure, leaves = signature
        if not all(self._here(place) for _, place in leaves):
            return None
        types = [
            (aval.shape, str(aval.dtype), aval.weak_type, *_over(place)) for aval, place in leaves
        ]
        if any(map(_outside, static.values())):  # its code may be edited, which the key would miss
            return None
        told = sorted(static.items())
        words = f"{function.__module__}.{function.__qualname__} {told!r} {structure} {types}"
        words += f" {sorted(options.items())}"
        if " at 0x" in words:  # an object without a repr of its own: another run's differs
            return None
        name = hashlib.sha256(words.encode()).hexdigest()[:32]
        own = f"-{jax.process_index()}-of-{jax.process_count()}" if self._several else ""
        return name + own

    def _here(self, place: Any) -> bool:
        """Whether a leaf lies where this store's programs run."""
        if place is None:
            return len(self._devices) == 1
        return isinstance(place, NamedSharding) and list(place.mesh.devices.flat) == self._devices

    def find(self, name: str) -> Any:
        """The program of a key, loaded; None where there is none. Processes that share a mesh must
        all ask for it."""
        program = self._load(self._folder / name)
        if self._several and not processes.each(np.int32(program is not None)).all():
            return None
        return program

    def _load(self, path: Path | Remote) -> Any:
        try:
            content, *trees = pickle.loads(path.read_bytes())
            return serial.deserialize_and_load(content, *trees, execution_devices=self._devices)
        except OSError:
            return None
        except InputError:
            raise
        except Exception:  # damaged, or of an XLA that cannot: whatever it is, compiling helps
            with suppress(OSError):
                path.unlink()
            return None

    def compile(self, name: str, lowered: Any, options: Options) -> Any:
        """Compiles and keeps. A folder that cannot be written keeps nothing, and nothing stops."""
        before = _hits
        compiled = lowered.compile(compiler_options=options)
        # XLA on CPUs writes a program that it has itself just read without some of its functions
        # (jax 0.10), and then cannot read that. So what an edit of the source leaves as it was is
        # lowered again in each run, and found in JAX's cache.
        if _hits > before and usual_device().platform == "cpu":
            return compiled
        try:
            content = pickle.dumps(serial.serialize(compiled))
        except Exception:  # a backend that cannot: it is slower next time, and no reason to stop
            return compiled
        with suppress(OSError):
            self._write(name, content)
        return compiled

    def _write(self, name: str, content: bytes) -> None:
        if isinstance(self._folder, Remote):
            (self._folder / name).write_bytes(content)
            return
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True, mode=0o700)
            others = [path for path in self._all.iterdir() if path != self._folder]
            others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
            for path in others[_SOURCES - 1 :]:
                shutil.rmtree(path, ignore_errors=True)
        with files.whole(self._folder / name) as scratch:  # another run may write the same now
            scratch.write_bytes(content)


def _over(place: Any) -> tuple[str, ...]:
    """How a leaf lies over a mesh, in words; nothing where it lies on the usual device."""
    return () if place is None else (f"{dict(place.mesh.shape)} {place.spec}",)


def _outside(value: Any) -> bool:
    """Whether a static argument is, names or holds anything of code outside the package."""
    if isinstance(value, str):
        return ":" in value  # module:name
    if isinstance(value, tuple):
        return any(map(_outside, value))
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return False
    own = type(value).__module__.partition(".")[0] != "mv2_jax"
    return own or any(_outside(getattr(value, part.name)) for part in dataclasses.fields(value))


def _made_of() -> str:
    """What all programs of this run are made from, as a folder's name."""
    device = usual_device()
    flags = {key: value for key, value in jax.config.values.items() if "cache" not in key}
    of = hashlib.sha256()
    for part in (
        [version(package) for package in ("jax", "jaxlib", "flax", "numpy")],
        [platform.python_version(), cache.machine()],
        [device.platform, device.device_kind, device.client.platform_version, jax.device_count()],
        [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")],
        sorted((key, repr(value)) for key, value in flags.items()),
    ):
        of.update(repr(part).encode())
    for path in sorted(path for folder in _CODE for path in folder.rglob("*.py")):
        of.update(path.name.encode() + path.read_bytes())
    return of.hexdigest()[:16]


def _count(event: str, **_: Any) -> None:
    """Counts the programs that JAX's own cache had."""
    global _hits
    _hits += event == "/jax/compilation_cache/cache_hits"


jax.monitoring.register_event_listener(_count)
