"""Programs kept whole between runs: what is taken, what is made anew, and that nothing stops."""

import dataclasses
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import fsspec
import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mv2_jax import config
from mv2_jax.infer import kept
from mv2_jax.infer.kept import Kept
from mv2_jax.programs import Programs
from mv2_jax.remote import place


@pytest.fixture(autouse=True)
def without_jax_cache():
    """JAX's own cache would give programs that cannot be written again. It looks once whether it is
    on, and an earlier test may have had it on."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


class Traced:
    """A function that counts its traces, and calls of it as runs of their own would make them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.traces, self.reports = folder, 0, []

        @partial(jax.jit, static_argnames="power")
        def function(tree, scale, *, power):
            self.traces += 1
            return {"y": tree["x"] ** power * scale}

        self.function = function

    def run(self, x, scale=2.0, power=2):
        programs, self.reports = Programs(Kept(self.folder)), []
        report = lambda *told: self.reports.append(told)  # noqa: E731
        out = programs("i2v", self.function, {"x": x}, scale, power=power, progress=report)
        return out["y"].tolist()

    def files(self):
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def traced(tmp_path):
    return Traced(tmp_path)


def test_a_second_run_neither_traces_nor_compiles(traced):
    assert traced.run(jnp.arange(3.0)) == [0.0, 2.0, 8.0]
    assert len(traced.reports) == 2 and traced.traces == 1
    assert traced.run(jnp.arange(3.0), scale=3.0) == [0.0, 3.0, 12.0]
    assert traced.reports == [] and traced.traces == 1 and len(traced.files()) == 1


def test_other_shapes_types_arguments_and_structures_are_other_programs(traced):
    traced.run(jnp.arange(3.0))
    traced.run(jnp.arange(4.0))
    traced.run(jnp.arange(3))
    traced.run(jnp.arange(3.0), power=3)
    traced.run(jnp.arange(3.0), scale=jnp.ones(3))
    traced.run(jnp.arange(3.0), scale=jnp.float32(2.0))  # weakly typed above, and not here
    assert traced.traces == 6 and len(traced.files()) == 6
    traced.run(jnp.arange(3), scale=5)
    assert traced.traces == 7


def test_other_source_flags_or_devices_are_other_programs(traced, monkeypatch, tmp_path):
    traced.run(jnp.arange(3.0))
    first = kept._made_of()
    with monkeypatch.context() as changed:
        changed.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        assert kept._made_of() != first
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        assert kept._made_of() != first
        traced.run(jnp.arange(3.0))
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert traced.traces == 2 and kept._made_of() == first
    (tmp_path / "source").mkdir()
    source = tmp_path / "source" / "networks.py"
    monkeypatch.setattr(kept, "_CODE", [source.parent])
    source.write_text("x = 1\n")
    second = kept._made_of()
    source.write_text("x = 2\n")
    assert len({first, second, kept._made_of()}) == 3


@pytest.mark.parametrize("damage", [b"", b"junk", "cut"])
def test_a_damaged_file_is_compiled_anew(traced, damage):
    traced.run(jnp.arange(3.0))
    (file,) = traced.files()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else damage)
    assert traced.run(jnp.arange(3.0)) == [0.0, 2.0, 8.0]
    assert len(traced.reports) == 2
    assert traced.run(jnp.arange(3.0)) == [0.0, 2.0, 8.0]
    assert traced.reports == [] and len(traced.files()) == 1


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").touch()
    traced = Traced(tmp_path / "file")
    for _ in range(2):
        assert traced.run(jnp.arange(3.0)) == [0.0, 2.0, 8.0] and len(traced.reports) == 2


def test_arrays_that_were_put_elsewhere_are_not_for_the_store(traced):
    other = jax.devices()[1]
    for _ in range(2):
        assert traced.run(jax.device_put(jnp.arange(3.0), other), 2.0) == [0.0, 2.0, 8.0]
        assert len(traced.reports) == 2
    assert traced.files() == []


def test_static_arguments_without_a_repr_are_not_for_the_store(tmp_path):
    store = Kept(tmp_path)
    usual = (jax.tree.structure(0), ())
    assert store.name(len, {"cfg": 1}, usual, {})
    assert store.name(len, {"cfg": object()}, usual, {}) is None


@dataclasses.dataclass(frozen=True)
class OwnProcess:
    speed: float = 1.0


def test_programs_of_code_outside_the_package_are_not_for_the_store(tmp_path):
    """Which an edit would change unseen."""
    store, signature = Kept(tmp_path), (None, [])
    stage = config.StageConfig(config.UNetConfig(), config.ScheduleConfig(), (8, 8))
    assert store.name(jnp.sin, {"cfg": stage, "dtype": jnp.float32}, signature, {})
    for change in ({"sampler": "own:plms2"}, {"schedule": OwnProcess()}):
        static = {"cfg": dataclasses.replace(stage, **change)}
        assert store.name(jnp.sin, static, signature, {}) is None


def test_programs_are_kept_in_a_bucket(traced):
    """fsspec's memory stands for one."""
    system, asked = fsspec.filesystem("memory"), jnp.arange(3.0)

    def run():
        programs, reports = Programs(Kept(place("memory://bucket/programs"))), []
        report = lambda *told: reports.append(told)  # noqa: E731
        out = programs("i2v", traced.function, {"x": asked}, 2.0, power=2, progress=report)
        return out["y"].tolist(), len(reports)

    try:
        assert run() == ([0.0, 2.0, 8.0], 2)
        assert run() == ([0.0, 2.0, 8.0], 0) and traced.traces == 1
        (file,) = system.find("/bucket")
        assert file.startswith("/bucket/programs/kept/")
        system.pipe_file(file, b"junk")
        assert run() == ([0.0, 2.0, 8.0], 2) and run() == ([0.0, 2.0, 8.0], 0)
    finally:
        system.rm("/bucket", recursive=True)


@pytest.mark.parametrize("url", ["file://{}/programs", "memory://programs"])
def test_a_bucket_is_the_cache_where_the_user_says_so(tmp_path, url):
    """JAX's own cache has it too where it can, and else is off; it stopped the command before."""
    code = (
        "import jax, jax.numpy as jnp\n"
        "from mv2_jax.infer import cache\n"
        "print(cache.enable(), jax.config.jax_compilation_cache_dir)\n"
        "print(float(jax.jit(lambda x: jnp.tanh(x).sum())(jnp.zeros(3))))\n"
    )
    url = url.format(tmp_path)
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": url}
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    own = f"{tmp_path}/programs" if url.startswith("file") else None
    assert told.stdout == f"{url} {own}\n0.0\n", told.stderr


def test_programs_of_sources_long_gone_are_removed(traced, monkeypatch):
    for age, source in enumerate("abcdefg"):
        monkeypatch.setattr(kept, "_made_of", lambda source=source: source)
        traced.run(jnp.arange(3.0))
        os.utime(traced.folder / "kept" / source, (age, age))
    assert sorted(path.name for path in (traced.folder / "kept").iterdir()) == list("defg")


def test_a_second_process_takes_them_and_a_program_of_jaxs_cache_is_not_kept(tmp_path):
    code = (
        "import jax, jax.numpy as jnp, sys\n"
        "from mv2_jax.infer import cache\n"
        "from mv2_jax.infer.kept import Kept\n"
        "from mv2_jax.programs import Programs\n"
        "folder = cache.enable()\n"
        "program = jax.jit(lambda x: jnp.tanh(x[1:] @ x[1:].T).sum())\n"
        "programs = Programs(Kept(folder))\n"
        "x = jnp.full((64, 64), 0.01)\n"
        "print(float(programs('t2i', program, x, progress=lambda *told: print(told))))\n"
        "print(len([*(folder / 'kept').rglob('*')]))\n"
    )

    def run():
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        assert told.returncode == 0, told.stderr
        return told.stdout.splitlines()

    first, second = run(), run()
    assert len(first) == 4 and second == first[2:] and first[-1] == "2"
    (folder,) = (tmp_path / "mv2_jax").glob("xla-*/kept/*")
    for file in folder.iterdir():
        file.unlink()
    third = run()  # JAX's cache has it, and what it has cannot be written again
    assert third[:3] == first[:3] and third[-1] == "1"
