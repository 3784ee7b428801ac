import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mv2_jax import params


def tree():
    rng = np.random.default_rng(0)
    return {
        "down_0": {
            "conv": {"kernel": rng.normal(size=(3, 3, 2, 4)).astype(np.float16)},
            "motion_modules_0": {"norm": {"scale": np.ones(4, np.float32)}},
        },
        "out": {"bias": rng.normal(size=5).astype(ml_dtypes.bfloat16), "steps": np.int32(7)},
    }


def same(a, b):
    a, b = params.flatten(a), params.flatten(b)
    assert a.keys() == b.keys()
    for name in a:
        left, right = np.asarray(a[name]), np.asarray(b[name])
        assert left.dtype == right.dtype and left.shape == right.shape, name
        np.testing.assert_array_equal(left, right, err_msg=name)


def test_flatten_names_and_unflatten_inverts():
    flat = params.flatten(tree())
    assert list(flat) == [
        "down_0/conv/kernel",
        "down_0/motion_modules_0/norm/scale",
        "out/bias",
        "out/steps",
    ]
    same(params.unflatten(flat), tree())


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_unflatten_refuses_a_leaf_that_is_also_a_branch(names):
    with pytest.raises(ValueError, match="'a"):
        params.unflatten({name: np.zeros(1) for name in names})


@pytest.mark.parametrize("key", ["a/b", "", 3])
def test_flatten_refuses_bad_names(key):
    with pytest.raises(ValueError, match="bad parameter name"):
        params.flatten({"x": {key: np.zeros(1)}})


def test_split_then_merge_gives_the_tree_back():
    motion, spatial = params.split(tree(), lambda name: "motion_modules_" in name)
    assert list(params.flatten(motion)) == ["down_0/motion_modules_0/norm/scale"]
    assert params.count(motion) + params.count(spatial) == params.count(tree()) == 72 + 4 + 5 + 1
    same(params.merge(spatial, motion), tree())


def test_merge_names_the_clash():
    with pytest.raises(ValueError, match="down_0/conv/kernel"):
        params.merge(tree(), {"down_0": {"conv": {"kernel": np.zeros(1)}}})
    with pytest.raises(ValueError, match="down_0"):
        params.merge(tree(), {"down_0": np.zeros(1)})


def test_cast_changes_floats_only_and_works_under_jit():
    half = params.flatten(params.cast(tree(), np.float16))
    assert {v.dtype.name for v in half.values()} == {"float16", "int32"}
    assert half["out/steps"].dtype == np.int32
    traced = jax.jit(lambda t: params.cast(t, jnp.bfloat16))(tree())
    assert params.flatten(traced)["down_0/conv/kernel"].dtype == jnp.bfloat16


def test_save_and_load_keep_every_bit_and_the_metadata(tmp_path):
    path = tmp_path / "w.safetensors"
    original = tree()
    # A transposed view is not contiguous: saved by raw memory it would come back scrambled.
    original["view"] = np.arange(12, dtype=np.float32).reshape(3, 4).T
    params.save(path, original, {"phase": "i2v", "step": 3})
    same(params.load(path), original)
    assert params.load_metadata(path) == {"phase": "i2v", "step": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_equal_trees_give_equal_bytes_and_digests(tmp_path):
    metadata = {key: key for key in "abcdef"}
    reordered = dict(reversed(list(jax.tree.map(jnp.asarray, tree()).items())))
    params.save(tmp_path / "a", tree(), metadata)
    params.save(tmp_path / "b", reordered, dict(reversed(list(metadata.items()))))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert params.digest(tree()) == params.digest(reordered)
    changed = tree()
    changed["out"]["bias"][2] += 1
    assert params.digest(changed) != params.digest(tree())


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    params.save(path, tree())
    before = path.read_bytes()

    def fails_half_way():
        yield "x", np.zeros(1, np.float32)
        raise OSError("disk full")

    spec = params.Spec((1,), np.dtype(np.float32))
    with pytest.raises(OSError, match="disk full"):
        params.save(path, params.Pending({"x": spec, "y": spec}, fails_half_way))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_load_tells_missing_from_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        params.load(tmp_path / "none.safetensors")
    path = tmp_path / "w.safetensors"
    params.save(path, tree())
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="damaged"):
        params.load(path)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match="damaged"):
        params.load(path)


def test_saved_files_have_the_users_own_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("x")
    params.save(tmp_path / "tree.safetensors", {"a": np.zeros(2, np.float32)})
    assert (tmp_path / "tree.safetensors").stat().st_mode == plain.stat().st_mode
