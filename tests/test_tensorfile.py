"""The writer makes the files that safetensors' own makes, without holding them in memory."""

import itertools
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save

from mv2_jax import params, tensorfile
from mv2_jax.tensorfile import Spec


def specs(tensors):
    return {name: Spec(array.shape, array.dtype) for name, array in tensors.items()}


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    arrays = {
        "b/x": rng.normal(size=(3, 5)).astype(np.float16),
        "a": rng.normal(size=7).astype(np.float32),
        "scalar": np.array(3, np.float32),
        'é"quoted': rng.normal(size=2).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 3), np.float16),
    }
    kinds = "u8 i8 f8 u4 i4 u2 i2 u1 i1 b1".split()
    return arrays | {kind: np.arange(3).astype(kind) for kind in kinds}


@pytest.mark.parametrize("metadata", [None, {"mv2": json.dumps({"a": "é"})}])
def test_bytes_are_the_librarys(tmp_path, tensors, metadata):
    backwards = reversed(list(tensors.items()))
    tensorfile.write(tmp_path / "x", specs(tensors), backwards, metadata)
    assert (tmp_path / "x").read_bytes() == save(tensors, metadata=metadata)


def test_arrays_in_any_memory_order_are_written_by_rows(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    tensorfile.write(tmp_path / "x", specs({"a": array}), [("a", array)])
    np.testing.assert_array_equal(load_file(tmp_path / "x")["a"], array)


@pytest.mark.parametrize(
    "given, text",
    [
        ([], "1 tensors never came, such as a"),
        ([("a", np.zeros(2, np.float32))] * 2, "a came twice"),
        ([("a", np.zeros(3, np.float32))], r"a: float32 \(3,\) was not expected"),
        ([("a", np.zeros(2, np.float16))], r"a: float16 \(2,\) was not expected"),
        ([("b", np.zeros(2, np.float32))], "b: .* was not expected"),
    ],
)
def test_what_differs_from_the_plan_leaves_no_file(tmp_path, given, text):
    with pytest.raises(ValueError, match=text):
        tensorfile.write(tmp_path / "x", {"a": Spec((2,), np.dtype(np.float32))}, given)
    assert not list(tmp_path.iterdir())


def test_types_that_the_format_lacks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a: safetensors holds no complex64"):
        tensorfile.write(tmp_path / "x", {"a": Spec((2,), np.dtype(np.complex64))}, [])


def test_a_pending_tree_is_saved_as_the_tree_itself(tmp_path):
    tree = {"b": {"w": np.ones((2, 3), np.float16)}, "a": np.arange(4, dtype=np.float16)}
    flat = params.flatten(tree)
    pending = params.Pending(specs(flat), lambda: reversed(flat.items()))
    params.save(tmp_path / "tree", tree, {"n": 1})
    params.save(tmp_path / "pending", pending, {"n": 1})
    assert (tmp_path / "tree").read_bytes() == (tmp_path / "pending").read_bytes()
    assert params.file_digest(tmp_path / "tree") == params.digest(tree)


SLICES = (slice(None), slice(1, 2), slice(1, 3), slice(2, 2))


@pytest.mark.parametrize("apart", [0, 20, 10**9])
@pytest.mark.parametrize("far", [False, True])
def test_parts_are_read_as_numpy_slices_them(tmp_path, tensors, monkeypatch, far, apart):
    tensors["three"] = np.random.default_rng(1).normal(size=(3, 5, 7)).astype(np.float16)
    tensorfile.write(tmp_path / "x", specs(tensors), tensors.items(), {"mv2": "{}"})
    monkeypatch.setattr(tensorfile, "APART", {"disk": apart, "bucket": apart})
    stored = tensorfile.read(f"file://{tmp_path}/x" if far else tmp_path / "x", keep=True)
    assert set(stored) == set(tensors)
    for name, tensor in tensors.items():
        whole = np.asarray(stored[name])
        assert (whole.dtype, whole.shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(whole, tensor)
    for index in itertools.product(SLICES, SLICES, SLICES):
        for _ in range(2):
            np.testing.assert_array_equal(stored["three"][index], tensors["three"][index])
        part = stored["three"].astype(np.float32)[index[:2]]
        np.testing.assert_array_equal(part, tensors["three"][index[:2]].astype(np.float32))


def test_a_part_costs_its_own_bytes(tmp_path):
    tensor = np.arange(2 * 8 * 4, dtype=np.float32).reshape(2, 8, 4)
    tensorfile.write(tmp_path / "x", specs({"a": tensor}), [("a", tensor)])
    stored, seen = tensorfile.read(tmp_path / "x")["a"], []
    spans = stored._spans
    stored._spans = lambda wanted: seen.extend(wanted) or spans(wanted)

    def cost(*index, apart=0):
        seen.clear()
        stored._apart = apart
        assert stored[index].nbytes <= sum(end - begin for begin, end in seen)
        return len(seen), sum(end - begin for begin, end in seen)

    assert cost() == (1, 256)
    assert cost(slice(1, 2)) == (1, 128)
    assert cost(slice(None), slice(0, 4)) == (2, 128)
    assert cost(slice(0, 1), slice(0, 4), slice(1, 2)) == (4, 16)
    assert cost(slice(0, 1), slice(0, 4), slice(1, 2), apart=64) == (1, 64)
    assert cost(slice(0, 1), slice(0, 4), slice(1, 2), apart=65) == (1, 128)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 80, b"\x02" + bytes(7) + b"[]"])
def test_what_is_no_tensor_file_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        tensorfile.read(tmp_path / "x")


def test_a_file_cut_short_is_refused(tmp_path, tensors):
    tensorfile.write(tmp_path / "x", specs(tensors), tensors.items())
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-1])
    with pytest.raises(ValueError, match="does not fit in it"):
        tensorfile.read(tmp_path / "x")
