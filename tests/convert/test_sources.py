"""Checkpoints are read whatever their container, and refused in one line when they are bad."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from mv2_jax.convert.ops import as_numpy
from mv2_jax.convert.sources import Renamed, load

torch = pytest.importorskip("torch")

TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}


def same(source, expected=TENSORS):
    assert set(source) == set(expected) and len(source) == len(expected)
    for name, array in expected.items():
        got = as_numpy(source[name])
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


def test_safetensors(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    same(load(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"a": {"weight": state["a.weight"]}, "b": state["b"]},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    ],
    ids=["bare", "wrapped", "nested", "data-parallel"],
)
def test_pickles(tmp_path, wrap, zipped):
    state = wrap({name: torch.from_numpy(array) for name, array in TENSORS.items()})
    torch.save(state, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    same(load(tmp_path / "x.ckpt"))


def test_bfloat16_keeps_its_bits(tmp_path):
    tensor = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
    torch.save({"x": tensor}, tmp_path / "x.pt")
    got = as_numpy(load(tmp_path / "x.pt")["x"])
    assert got.dtype.name == "bfloat16"
    np.testing.assert_array_equal(got.astype(np.float32), tensor.float().numpy())


def test_a_folder_of_shards(tmp_path):
    where = {}
    for number, (name, array) in enumerate(TENSORS.items(), 1):
        where[name] = f"model-{number:05}-of-00002.safetensors"
        save_file({name: array}, tmp_path / where[name])
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    same(load(tmp_path))
    (tmp_path / where["b"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"00002-of-00002\.safetensors, which is missing"):
        load(tmp_path)
    index.write_text(json.dumps({"weight_map": {"b": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="outside its folder"):
        load(tmp_path)
    index.write_text("[")
    with pytest.raises(ValueError, match="is not an index of shards"):
        load(tmp_path)


def test_a_folder_with_precisions(tmp_path):
    half = {name: array.astype(np.float16) for name, array in TENSORS.items()}
    save_file(TENSORS, tmp_path / "model.safetensors")
    save_file(half, tmp_path / "model.fp16.safetensors")
    torch.save({"other": torch.ones(1)}, tmp_path / "model.bin")
    same(load(tmp_path))
    same(load(tmp_path, variant="fp16"), half)
    with pytest.raises(FileNotFoundError, match="no bf16 weights"):
        load(tmp_path, variant="bf16")


def test_a_folder_with_two_checkpoints_asks_for_one(tmp_path):
    save_file(TENSORS, tmp_path / "one.safetensors")
    save_file(TENSORS, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"one.safetensors, two.safetensors\); name one"):
        load(tmp_path)


class Hostile:
    """A pickle that would run code where pickles are trusted."""

    def __reduce__(self):
        return print, ("this must not run",)


def test_bad_files_are_refused(tmp_path, capsys):
    def write(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*gone\.ckpt"):
        load(tmp_path / "gone.ckpt")
    with pytest.raises(ValueError, match="unknown kind of checkpoint"):
        load(write("x.txt", b"hello"))
    for name in ("x.safetensors", "x.ckpt", "x.bin"):
        for content in (b"", b"hello", b"PK\x03\x04 not a zip"):
            with pytest.raises(ValueError, match=r"damaged|a pickle that is called"):
                load(write(name, content))
    save_file(TENSORS, tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    with pytest.raises(ValueError, match="damaged"):
        load(write("cut.safetensors", whole[:-3]))
    torch.save({"x": Hostile()}, tmp_path / "hostile.pt")
    with pytest.raises(ValueError, match="holds more than tensors: it wants print"):
        load(tmp_path / "hostile.pt")
    assert capsys.readouterr().out == ""
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="no named tensors"):
        load(tmp_path / "empty.pt")


def test_a_part_of_a_file(tmp_path):
    part = Renamed(TENSORS, "a.")
    assert list(part) == ["weight"] and len(part) == 1
    np.testing.assert_array_equal(part["weight"], TENSORS["a.weight"])
