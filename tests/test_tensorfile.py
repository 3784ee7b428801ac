"""The writer makes the files that safetensors' own makes, without holding them in memory."""

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
