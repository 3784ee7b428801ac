"""The engine refuses whatever does not fit exactly, in text that a person can act on."""

import ml_dtypes
import numpy as np
import pytest

from mv2_jax.convert.engine import (
    ConversionError,
    Fill,
    Ignore,
    Rule,
    conv,
    convert,
    dense,
    export,
    norm,
    shorten,
    stream,
    under,
)
from mv2_jax.params import flatten

PLACES = "{side:down|up}_blocks.{i}.resnets.{j}", "{side}_blocks_{i}/resnets_{j}"
TABLE = [
    *conv(f"{PLACES[0]}.conv", f"{PLACES[1]}/conv"),
    *norm(f"{PLACES[0]}.norm", f"{PLACES[1]}/norm"),
    *dense("proj", "proj", bias=False),
    Rule("attn.in_proj_weight", ("attn/q/kernel", "attn/k/kernel", "attn/v/kernel"), "split_qkv"),
    Ignore("{x:**}.position_ids", "a buffer, counted from zero at run time"),
]


def _source(seed=0):
    random = np.random.default_rng(seed)
    shapes = {
        "down_blocks.0.resnets.0.conv.weight": (5, 4, 3, 3),
        "down_blocks.0.resnets.0.conv.bias": (5,),
        "up_blocks.0.resnets.1.norm.weight": (4,),
        "up_blocks.0.resnets.1.norm.bias": (4,),
        "proj.weight": (6, 4),
        "attn.in_proj_weight": (9, 4),
    }
    return {k: random.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def _target():
    shape = lambda *s: np.broadcast_to(np.float32(0), s)  # noqa: E731
    return {
        "down_blocks_0": {"resnets_0": {"conv": {"kernel": shape(3, 3, 4, 5), "bias": shape(5)}}},
        "up_blocks_0": {"resnets_1": {"norm": {"scale": shape(4), "bias": shape(4)}}},
        "proj": {"kernel": shape(4, 6)},
        "attn": {n: {"kernel": shape(4, 3)} for n in "qkv"},
    }


def test_layouts_change_and_every_leaf_is_filled():
    source = _source()
    tree = convert({**source, "text.position_ids": np.arange(3)}, TABLE, _target())
    assert flatten(tree).keys() == flatten(_target()).keys()
    kernel = tree["down_blocks_0"]["resnets_0"]["conv"]["kernel"]
    weight = source["down_blocks.0.resnets.0.conv.weight"]
    assert kernel[2, 1, 3, 4] == weight[4, 3, 2, 1]
    np.testing.assert_array_equal(tree["proj"]["kernel"], source["proj.weight"].T)
    np.testing.assert_array_equal(tree["attn"]["k"]["kernel"], source["attn.in_proj_weight"][3:6].T)


def test_export_is_the_exact_inverse():
    source = _source()
    back = export(convert(source, TABLE, _target()), TABLE)
    assert back.keys() == source.keys()
    for key, array in source.items():
        np.testing.assert_array_equal(back[key], array)


def test_export_refuses_a_leaf_without_rule():
    with pytest.raises(ConversionError, match=r"1 no rule exports:\n  other/kernel"):
        export({"other": {"kernel": np.zeros(2)}}, TABLE)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"mystery.weight": np.zeros(1)}, r"1 unknown in the source:\n  mystery.weight"),
        (
            {"down_blocks.0.resnets.7.conv.bias": np.zeros(5)},
            r"without a place.*:\n  .*resnets.7.conv.bias -> down_blocks_0/resnets_7/conv/bias",
        ),
        ({"proj.weight": np.zeros((6, 5))}, r"wrong shape:\n  proj.weight \(6, 5\) gives \(5, 6\)"),
        ({"proj.weight": np.zeros(6)}, r"wrong shape:\n  proj.weight \(6,\): expected a matrix"),
        ({"proj.weight": np.full((6, 4), np.nan)}, r"1 not finite .*:\n  proj.weight"),
        ({"proj.weight": None}, r"1 missing from the source .*:\n  proj/kernel"),
    ],
)
def test_a_misfit_is_an_error_that_names_it(change, text):
    source = {k: v for k, v in {**_source(), **change}.items() if v is not None}
    with pytest.raises(ConversionError, match=text):
        convert(source, TABLE, _target())


def test_a_leaf_filled_twice_names_both_sources():
    table = [*TABLE, *dense("projection", "proj", bias=False)]
    source = {**_source(), "projection.weight": np.zeros((6, 4))}
    with pytest.raises(ConversionError, match=r"proj/kernel from proj.weight and from projection"):
        convert(source, table, _target())


def test_an_ambiguous_table_is_an_error():
    with pytest.raises(ConversionError, match=r"proj.weight by 'proj.weight' and '\{x:\*\}.weight"):
        convert(_source(), [*TABLE, Rule("{x:*}.weight", "{x}/kernel")], _target())


def test_all_problems_come_at_once():
    source = {f"odd.{i}.weight": np.zeros(1) for i in range(3)}
    with pytest.raises(ConversionError) as caught:
        convert(source, TABLE, _target())
    assert "odd.0.weight  (and 2 like it)" in str(caught.value)
    assert "attn/q/kernel" in str(caught.value)


def test_a_target_field_unknown_to_the_source_is_refused():
    with pytest.raises(ValueError, match="names field 'j'"):
        export({"x": np.zeros(1)}, [Rule("a.{i}", "a_{j}")])


def test_types_are_kept_or_cast():
    source = {"proj.weight": np.ones((6, 4), ml_dtypes.bfloat16), "ids": np.arange(3)}
    table = [*dense("proj", "proj", bias=False), Rule("ids", "ids")]
    target = {"proj": {"kernel": np.zeros((4, 6))}, "ids": np.zeros(3)}
    kept = convert(source, table, target)
    assert kept["proj"]["kernel"].dtype == ml_dtypes.bfloat16
    cast = convert(source, table, target, dtype=np.float16)
    assert cast["proj"]["kernel"].dtype == np.float16
    assert cast["ids"].dtype == source["ids"].dtype


def test_each_tensor_is_read_once_and_late():
    class Counting(dict):
        reads = 0

        def __getitem__(self, key):
            self.reads += 1
            return super().__getitem__(key)

    source = Counting(_source())
    pairs = stream(source, TABLE, _target())
    next(pairs)
    assert source.reads == 1
    list(pairs)
    assert source.reads == len(source)


def test_shortened_lists_say_how_many_were_left_out():
    names = [f"{letter}.weight" for letter in "abcdefghijklmnop"]
    assert shorten(names, limit=3) == ["a.weight", "b.weight", "c.weight", "... and 13 more"]


def test_a_default_fills_what_the_source_lacks_and_hides_nothing():
    table = [*dense("proj", "proj", bias=False), Fill("pe/{i}", lambda shape: np.full(shape, 2.0))]
    target = {"proj": {"kernel": np.zeros((4, 6))}, "pe": {"0": np.zeros((3, 2))}}
    tree = convert({"proj.weight": np.ones((6, 4))}, table, target)
    np.testing.assert_array_equal(tree["pe"]["0"], np.full((3, 2), 2.0))
    clash = {"proj.weight": np.ones((6, 4)), "stored": np.ones((3, 2))}
    with pytest.raises(ConversionError, match="pe/0 from a default of the table and from stored"):
        convert(clash, [*table, Rule("stored", "pe/0")], target)


def test_a_table_can_sit_inside_a_larger_file_and_tree():
    table = under(dense("proj", "proj", bias=False), "model.", "unet/")
    tree = convert(
        {"model.proj.weight": np.ones((6, 4))},
        table,
        {"unet": {"proj": {"kernel": np.ones((4, 6))}}},
    )
    assert list(export(tree, table)) == ["model.proj.weight"]


def test_export_refuses_two_tensors_where_the_layout_has_room_for_one():
    table = [Rule("pe", ("a/pe", "b/pe"), "share_unbatched")]
    pe = np.arange(6.0).reshape(3, 2)
    assert export({"a": {"pe": pe}, "b": {"pe": pe}}, table)["pe"].shape == (1, 3, 2)
    with pytest.raises(ConversionError, match="pe: two tensors that differ"):
        export({"a": {"pe": pe}, "b": {"pe": pe + 1}}, table)
