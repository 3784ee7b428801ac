"""`--mesh`: what it takes, what it refuses, and that programs and stages run on one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.experimental.compilation_cache import compilation_cache

from mv2_jax import bundle, cascade, cli, sharding
from mv2_jax.diffusion import keys
from mv2_jax.errors import InputError
from mv2_jax.infer import generate, meshes
from mv2_jax.infer.kept import Kept
from mv2_jax.programs import Programs


def test_auto_is_samples_then_frames_then_weights():
    assert meshes.auto(8, samples=1, frames=32) == {"context": 8}
    assert meshes.auto(8, samples=4, frames=32) == {"data": 4, "context": 2}
    assert meshes.auto(8, samples=3, frames=8) == {"context": 8}
    assert meshes.auto(64, samples=2, frames=8) == {"data": 2, "fsdp": 4, "context": 8}
    assert meshes.auto(1) == {}


def test_a_mesh_takes_all_devices_and_says_what_it_is():
    mesh = meshes.of(" data=2, context=4")
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "context": 4, "tensor": 1}
    assert meshes.described(mesh) == "8 cpu devices, data 2 x context 4"
    assert meshes.described(None) == "1 cpu device of 8; --mesh uses more"
    assert dict(meshes.of("auto", samples=2, frames=4).shape)["data"] == 2
    assert meshes.of(None) is None


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("contxt=8", "unknown axis 'contxt'; did you mean 'context'?"),
        ("data=2,context=3", "its sizes multiply to 6"),
        ("data=two", "each axis takes one whole number, such as data=2"),
        ("data=0", "each axis takes one whole number"),
        ("data=2,data=4", "each axis takes one whole number"),
        ("8", "unknown axis '8'"),
    ],
)
def test_what_does_not_fit_is_said_with_what_would(asked, words):
    with pytest.raises(InputError) as caught:
        meshes.of(asked)
    told = str(caught.value)
    assert words in told
    assert "there are 8 cpu devices: context=8 or data=2,context=4 would fit" in told


def test_on_one_device_a_mesh_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    with pytest.raises(InputError, match="there is 1 cpu device; leave --mesh out"):
        meshes.of("data=2")
    assert meshes.of("auto") is None
    assert meshes.of("data=1") is None


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "a red ball"),
        ("eval", "toybox"),
        ("explain", "a red ball"),
        ("study", "inference"),
    ],
)
def test_commands_refuse_a_mesh_in_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "--mesh", "data=3"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("mv2: error: --mesh data=3: "), said


def test_programs_of_a_mesh_are_kept(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    traces = []

    @partial(jax.jit, static_argnames="power")
    def function(x, y, *, power):
        traces.append(sharding.current_mesh().shape)
        return x.sum() ** power + y

    def run(**sizes):
        mesh = sharding.make_mesh(**sizes)
        programs = Programs(Kept(tmp_path, mesh), mesh)
        x = sharding.shard_batch(np.arange(8, dtype=np.float32), mesh)
        return float(programs("i2v", function, x, np.float32(1), power=2))

    try:
        for _ in range(2):
            assert run(data=8) == run(data=4, context=2) == 28.0**2 + 1
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
    assert [tuple(shape.values()) for shape in traces] == [(8, 1, 1, 1), (4, 1, 2, 1)]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_a_program_takes_keys_and_numbers_to_the_mesh():
    programs = Programs(mesh=sharding.make_mesh(context=8))
    placed = programs.placed({"keys": keys.seeds([1, 2]), "n": np.float32(2), "i": jnp.arange(3)})
    assert all(leaf.sharding.num_devices == 8 for leaf in jax.tree.leaves(placed))
    assert (jax.random.key_data(placed["keys"]) == jax.random.key_data(keys.seeds([1, 2]))).all()


def test_weights_and_pixels_lie_on_the_mesh(tmp_path, monkeypatch):
    """The VAE, from a folder's weights to pixels; all stages: test_meshes_same.py, slow."""
    monkeypatch.setattr(generate.cache, "enable", lambda: None)
    folder = tiny.write(tmp_path / "weights", tiny.make())
    four, made_with = generate.load(bundle.read(folder.folder), "data=2,fsdp=2,tensor=2", 2)
    assert made_with["mesh"] == "data=2,fsdp=2,tensor=2"
    kernel = four.params["spatial"]["mid_block"]["resnets_0"]["conv2"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (3, 3, 4, 4)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32, 3)).astype(np.float32)
    alone = cascade.load(folder)
    one, other = (c.decode(c.encode(pixels)) for c in (alone, four))
    assert other.is_fully_replicated and len(other.devices()) == 8
    assert np.std(one) > 0.05
    np.testing.assert_allclose(np.asarray(other), np.asarray(one), atol=1e-5)
