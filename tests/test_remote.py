"""Weights by URL, and which parts of them a process reads."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
import tiny

from mv2_jax import bundle, cascade, cli, components, params, remote, sharding
from mv2_jax.errors import InputError

BETWEEN = ({"w": np.ones(3, np.float32)}, tiny.RIFE_SIZES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("remote") / "tiny", tiny.make())


@pytest.fixture
def bucket(folder):
    """The folder's files in fsspec's memory, by URL."""
    system = fsspec.filesystem("memory")
    for path in folder.folder.iterdir():
        system.pipe_file(f"/bucket/tiny/{path.name}", path.read_bytes())
    yield "memory://bucket/tiny"
    system.rm("/bucket", recursive=True)


def same(ours, theirs):
    assert set(ours) == set(theirs)
    for name in theirs:
        jax.tree.map(np.testing.assert_array_equal, ours[name], theirs[name])


@pytest.mark.parametrize("resident", components.RESIDENT)
@pytest.mark.parametrize("over", [{}, {"fsdp": 2, "context": 2, "tensor": 2}])
def test_weights_come_from_a_bucket(folder, bucket, resident, over):
    mesh = sharding.make_mesh(**over) if over else None
    far = bundle.read(bucket)
    assert far.digest == folder.digest and str(far.folder) == bucket
    ours = cascade.load(far, interpolator=BETWEEN, mesh=mesh, resident=resident)
    same(ours.params, cascade.load(folder, interpolator=BETWEEN).params)
    kernel = ours.params["spatial"]["mid_block"]["resnets_0"]["conv2"]["kernel"]
    assert len(kernel.sharding.device_set) == (8 if over else 1)
    if over:
        assert kernel.sharding.shard_shape(kernel.shape) == (3, 3, 4, 4)


def test_damage_in_a_bucket_is_found(bucket):
    system = fsspec.filesystem("memory")
    content = bytearray(system.cat_file("/bucket/tiny/vae.safetensors"))
    content[-1] ^= 1
    system.pipe_file("/bucket/tiny/vae.safetensors", bytes(content))
    with pytest.raises(InputError, match=r"tiny/vae\.safetensors is damaged"):
        bundle.read(bucket).verify()
    system.pipe_file("/bucket/tiny/vae.safetensors", bytes(content[:-1]))
    with pytest.raises(InputError, match="bytes instead of"):
        bundle.read(bucket)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere/tiny", "no weights at memory://nowhere/tiny"),
        (
            "nosuch://bucket/tiny",
            "mv2: error: nosuch://bucket/tiny/cascade.json: Protocol not known",
        ),
        ("lacking://bucket/tiny", "install lacking (mv2-jax[bucket])"),
    ],
)
def test_what_is_not_there_is_one_line(url, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = "install lacking"
    fsspec.register_implementation("lacking", "lacking.System", clobber=True, errtxt=said)
    assert cli.main(["generate", "a red ball", "--weights", url]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_files_are_written_whole(tmp_path):
    file = remote.place(f"file://{tmp_path}/a/b")
    file.write_bytes(b"one")
    file.write_bytes(b"other")
    assert file.read_bytes() == b"other" and file.read_spans([(1, 3), (0, 1)]) == [b"th", b"o"]
    assert os.listdir(tmp_path / "a") == ["b"] and file.stat().st_size == 5
    file.unlink()
    assert not file.is_file() and file.name == "b"
    with pytest.raises(OSError, match="a/b"):
        file.read_bytes()


def test_a_file_that_goes_away_while_it_is_read_is_an_error_of_the_disk(bucket):
    stored = params.stored(remote.place(f"{bucket}/vae.safetensors"))
    fsspec.filesystem("memory").rm_file("/bucket/tiny/vae.safetensors")
    with pytest.raises(OSError):
        np.asarray(next(iter(params.flatten(stored).values())))


WORKER = """
import sys
import numpy as np
from mv2_jax import bundle, cascade, params, sharding, tensorfile
from mv2_jax.infer import meshes
from mv2_jax.train import processes

processes.initialise()
four = bundle.read(sys.argv[1])
for apart in tensorfile.APART:
    tensorfile.APART[apart] = 0
seen, block = [0], tensorfile.Stored._block
def counted(self, runs):
    seen[0] += sum(end - begin for begin, end in runs) * self._spec.dtype.itemsize
    return block(self, runs)
tensorfile.Stored._block = counted
between = ({"w": np.ones(3, np.float32)}, four.config("vae"))
made = cascade.load(four, interpolator=between, mesh=sharding.make_mesh(fsdp=2, tensor=2))
kernels = [x for name, tree in made.params.items() for x in params.flatten(tree).values()]
print("read", seen[0], sum(x.nbytes // 2 for x in kernels))
whole = meshes.alone(made.params["spatial"])
print("right", params.digest(params.cast(whole, np.float16)) == four.spatial)
processes.wait("done")
"""


def test_each_process_reads_its_own_devices_parts(folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    place["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    place["PYTHONPATH"] = str(Path(__file__).parents[1])
    url = f"file://{folder.folder}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, url],
            env={**os.environ, **place, "JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    for out, _ in said:
        told = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
        read, whole = map(int, told["read"])
        assert told["right"] == ["True"]
        assert 0.4 * whole < read < 0.75 * whole, (read, whole)  # norms and biases are whole
