import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mv2_jax import bundle
from mv2_jax.errors import InputError
from mv2_jax.infer import cache, progress, settings


def weights(**defaults):
    steps = {stage: SimpleNamespace(steps=20) for stage in ("t2i", "i2v", "v2v")}
    folder = Path("somewhere")
    return bundle.Bundle(folder, "ours", {}, steps, defaults, None, None)


def test_numbers_come_from_the_user_then_the_sidecar_then_the_weights_then_the_table():
    given = {"t2i_guidance": 1.0, "image_scale": 0.25}
    base = {"t2i": {"guidance": 2.0}, "i2v": {"guidance": 2.5}}
    ours = weights(t2i={"guidance": 3.0}, i2v={"guidance": 3.5}, v2v={"guidance": 4.5, "steps": 9})
    numbers = settings.resolve(given, base, ours)
    assert [numbers[stage]["guidance"] for stage in ("t2i", "i2v", "v2v")] == [1.0, 2.5, 4.5]
    assert [numbers[stage]["steps"] for stage in ("t2i", "i2v", "v2v")] == [20, 20, 9]
    assert numbers["i2v"]["image_scale"] == numbers["v2v"]["image_scale"] == 0.25
    assert numbers["vfi"] == {"between": 2, "fps": 12}


def test_resolved_numbers_resolve_to_themselves():
    numbers = settings.resolve({"v2v_strength": 0.3}, {}, weights())
    assert settings.resolve({}, numbers, weights(v2v={"strength": 0.9})) == numbers


def test_wrong_defaults_of_the_weights_are_named():
    with pytest.raises(InputError, match="defaults of somewhere: t2i has no setting 'guidence'"):
        settings.resolve({}, {}, weights(t2i={"guidence": 1.0}))
    with pytest.raises(
        InputError, match="defaults of somewhere: t2i guidance is 1000; it goes from 0 to 100"
    ):
        settings.resolve({}, {}, weights(t2i={"guidance": 1000}))


def test_flags_of_skipped_stages_are_idle():
    given = {"t2i_steps": 3, "noise_prior": 0.1, "image_scale": 1.0, "fps": None}
    assert settings.idle(given, "t2i") == []
    assert settings.idle(given, "i2v") == ["--t2i-steps"]
    assert settings.idle(given, "v2v") == ["--t2i-steps", "--noise-prior"]


def test_cache_folder_is_where_the_platform_has_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache.user_cache() == tmp_path / "xdg" / "mv2_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache.user_cache() == tmp_path / ".cache" / "mv2_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.user_cache() == tmp_path / ".cache" / "mv2_jax"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.user_cache() == tmp_path / "Library" / "Caches" / "mv2_jax"


@pytest.fixture
def jax_cache():
    """Leaves JAX's cache settings as they were."""
    import jax

    names = [
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], None)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_cache_is_made_and_used(monkeypatch, tmp_path, jax_cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    path = cache.enable()
    assert path.is_dir() and path.parent == tmp_path / "mv2_jax"
    assert jax_cache.jax_compilation_cache_dir == str(path)
    (path / "x").write_bytes(b"12345")
    assert cache.size(path) == 5


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path, jax_cache):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache.enable() is None
    assert jax_cache.jax_compilation_cache_dir is None
    assert cache.size(tmp_path / "none") == 0


def test_a_cache_elsewhere_says_which_package_it_lacks(monkeypatch, tmp_path, jax_cache):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    jax_cache.update("jax_compilation_cache_dir", "gs://bucket/xla")
    with pytest.raises(InputError, match=r"^gs://bucket/xla/kept: .*gcsfs"):
        cache.enable()
    assert not list(tmp_path.iterdir())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(stream):
    """What stands in each line of a terminal in the end."""
    return [line.split("\r")[-1] for line in stream.getvalue().split("\n")[:-1]]


def test_a_forecast_is_of_what_is_left_to_make():
    said, now = [], iter([0, 100, 101, 141, 999])  # the first batch compiles
    forecast = progress.Forecast(said.append, 40, 10, 10.4, clock=lambda: next(now))
    assert said == ["40 videos in 10 batches, about 7 min on two CPU cores"]
    forecast.done()
    forecast.done(made=False)
    assert len(said) == 1
    forecast.done()
    forecast.done()
    assert said[1:] == ["about 5 min to go"]  # 7 of 40 s


def test_a_stage_has_one_bar_which_names_its_compilations():
    stream = Terminal()
    with progress.Bars(stream) as bars:
        with bars.loading():
            assert "loading" in stream.getvalue()
        for _ in range(3):
            bars("compiling i2v", 0, 1)
            assert "I2V keyframes, compiling (once)" in stream.getvalue().split("\r")[-1]
            bars("compiling i2v", 1, 1)
        for done in (0, 5, 10):
            bars("i2v", done, 10)
        bars("compiling i2v", 0, 1)
        bars("compiling i2v", 1, 1)
        bars("vfi", 1, 1)
        bars("vfi", 0, 1)  # once more
        bars("vfi", 1, 1)
    last = lines(stream)
    assert last[0].lstrip().startswith("I2V keyframes  ") and "100%" in last[0]
    assert "10/10" in last[0] and len(last) == 3
    assert all(line.startswith("VFI in-between") and "1/1" in line for line in last[1:])


def test_a_log_is_not_told_of_loading():
    stream = io.StringIO()
    with progress.Bars(stream) as bars, bars.loading():
        pass
    assert stream.getvalue() == ""


def test_bars_keep_moving_between_calls():
    stream = Terminal()
    with progress.Bars(stream, tick=0.01) as bars:
        bars("compiling t2i", 0, 1)
        before = len(stream.getvalue())
        for _ in range(200):
            if len(stream.getvalue()) > before:
                break
            bars._stop.wait(0.01)
        assert len(stream.getvalue()) > before


def test_a_second_process_takes_programs_from_the_cache_and_says_nothing(tmp_path):
    code = (
        "from mv2_jax.infer import cache\n"
        "path = cache.enable()\n"
        "import jax, jax.numpy as jnp\n"
        "from mv2_jax.programs import Programs\n"
        "program = jax.jit(lambda x: jnp.tanh(x @ x).sum())\n"
        "print(float(Programs()('t2i', program, jnp.full((64, 64), 0.01))))\n"
        "print(sorted(file.name for file in path.iterdir() if 'lambda' in file.name))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout and "jit__lambda" in runs[0].stdout
    assert [run.stderr for run in runs] == ["", ""]
