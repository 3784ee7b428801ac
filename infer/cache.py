"""Where compiled programs are kept from run to run."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
from pathlib import Path

from mv2_jax.infer.release import version
from mv2_jax.remote import Remote, place

_bucket: list[Remote] = []  # the one that was chosen, once JAX no longer knows it


def user_cache() -> Path:
    """The cache folder of this program, as the platform has it."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        # The XDG rules say that a relative path is to be ignored.
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))
        base = given if given.is_absolute() else Path.home() / ".cache"
    return base / "mv2_jax"


def folder() -> Path:
    """The folder for programs that this version of the package compiled on this kind of machine.

    A home directory may be shared by machines whose processors differ, and XLA compiles for the
    processor at hand. Each version begins anew, since what JAX's cache has of an older one could
    not be kept whole (`infer.kept`).
    """
    return user_cache() / f"xla-{version()}-{machine()}"


def machine() -> str:
    """A short name for this kind of processor."""
    kind = f"{platform.machine()} {platform.processor()} {_cpu_features()}"
    return hashlib.sha256(kind.encode()).hexdigest()[:12]


def enable() -> Path | Remote | None:
    """Turns JAX's compilation cache on; returns its folder, or None where it cannot be written.

    A folder the user has set (JAX_COMPILATION_CACHE_DIR) is kept, and may be a bucket's.

    Raises:
        InputError: a URL that cannot be asked, for want of a package.
    """
    import jax

    if _bucket:
        return _bucket[0]
    chosen = jax.config.jax_compilation_cache_dir
    # Everything is kept: the many small programs around the big ones add up to seconds too.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if chosen and "://" in chosen:
        return _remote(chosen)
    path = Path(chosen) if chosen else folder()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError:
        return None  # slower next time, and no reason to stop
    jax.config.update("jax_compilation_cache_dir", str(path))
    return path


def _remote(url: str) -> Remote:
    """The folder of a URL. Where JAX's own cache cannot write there it is turned off, since it
    would stop the command; whole programs are kept all the same (`infer.kept`)."""
    import jax

    bucket = place(url)
    (bucket / "kept").is_file()  # says what is lacking, before any work is done
    own: str | None = url
    if url.startswith("file://"):
        own = url.removeprefix("file://")
    else:
        try:
            from etils import epath

            epath.Path(url).mkdir(parents=True, exist_ok=True)
        except Exception:  # no etils, a kind of URL that it does not know, or one it may not write
            own = None
    jax.config.update("jax_compilation_cache_dir", own)
    _bucket.append(bucket)
    return bucket


def size(path: Path) -> int:
    """Bytes of all files in a folder; 0 where there is none."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _cpu_features() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return " ".join(sorted(next(lines, "").partition(":")[2].split()))
