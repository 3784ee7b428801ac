from types import SimpleNamespace

import numpy as np
import pytest

from mv2_jax.errors import InputError
from mv2_jax.infer import mechanisms
from mv2_jax.infer.mechanisms import FULL, OFF, VARIED, Bench, Variant

NUMBERS = {
    "t2i": {"steps": 2, "guidance": 4.0},
    "i2v": {"noise_prior": 1.0, "image_scale": 1.0, "control_scale": 1.0, "guidance": 4.0}
    | {"image_guidance": 1.5},
    "v2v": {"strength": 0.5, "image_scale": 1.0, "control_scale": 1.0, "guidance": 4.0}
    | {"image_guidance": 1.5},
    "vfi": {"between": 2, "fps": 12},
}


class Counting:
    """A cascade whose stages add up their numbers, and that counts its calls."""

    def __init__(self, offset=0.0):
        self.calls, self.offset = [], offset
        self.refined = SimpleNamespace(stage=SimpleNamespace(size=(8, 8)))

    def _level(self, stage, numbers):
        self.calls.append(stage)
        return np.float32(0.01 * sum(numbers.values()) + self.offset)

    def t2i(self, prompts, *, keys, negative, progress, **numbers):
        return np.full((len(prompts), 8, 8, 3), self._level("t2i", numbers))

    def i2v(self, prompts, image, *, keys, negative, progress, **numbers):
        clip = np.full((len(prompts), 3, 4, 4, 3), self._level("i2v", numbers))
        return clip + image.mean() + np.linspace(0, 0.3, 3, dtype=np.float32)[:, None, None, None]

    def v2v(self, prompts, image, keyframes, *, keys, negative, progress, **numbers):
        level = self._level("v2v", numbers)
        return np.repeat(np.repeat(keyframes, 2, axis=2), 2, axis=3) + level

    def vfi(self, frames, times, *, progress):
        self.calls.append("vfi")
        return np.linspace(frames[:, 0], frames[:, -1], (frames.shape[1] - 1) * times + 1, axis=1)


def test_stages_run_once_for_all_variants_that_agree_up_to_them():
    four = Counting()
    bench = Bench(four, ["a", "b"], [0, 1], NUMBERS)
    made = {variant.name: bench.make(variant) for variant in (FULL, *OFF)}
    assert four.calls.count("t2i") == 1
    # The full cascade, five that change I2V; those two without V2V or VFI use what there is.
    assert four.calls.count("i2v") == 6 and four.calls.count("v2v") == 6
    assert four.calls.count("vfi") == 7
    bench.make(FULL)
    assert len(four.calls) == 20
    full = made[FULL.name]
    assert full.frames.shape == (2, 7, 8, 8, 3) and full.frames.dtype == np.uint8
    different = [name for name, m in made.items() if not np.array_equal(m.frames, full.frames)]
    assert set(different) == {variant.name for variant in OFF}


def test_without_vfi_frames_are_repeated_and_without_v2v_enlarged():
    bench = Bench(Counting(), ["a"], [0], NUMBERS)
    full = bench.make(FULL)
    held = bench.make(next(v for v in OFF if v.group == "vfi"))
    assert held.frames.shape == full.frames.shape
    assert np.array_equal(held.frames[:, :3], np.repeat(full.refined[:, :1], 3, axis=1))
    assert np.array_equal(held.frames[:, ::3], full.refined)
    large = bench.make(next(v for v in OFF if v.group == "v2v"))
    assert large.refined.shape == full.refined.shape
    assert np.allclose(large.refined[:, :, 0, 0], full.keyframes[:, :, 0, 0])


def test_an_arm_runs_its_own_stages_alone():
    four, other = Counting(), Counting(0.2)
    bench = Bench(four, ["a"], [0], NUMBERS, arms={"mine": {"i2v": other}})
    full, mine = bench.make(FULL), bench.make(Variant("mine", "training", weights="mine"))
    assert other.calls == ["i2v"] and four.calls.count("t2i") == 1
    assert np.array_equal(full.picture, mine.picture)
    assert not np.array_equal(full.keyframes, mine.keyframes)


def test_names_differ_and_change_only_what_there_is():
    names = [variant.name for variant in (FULL, *VARIED)]
    assert len(set(names)) == len(names)
    for variant in (*OFF, *VARIED):
        assert variant.changes or variant.skip
        assert all(name in {"steps", *NUMBERS[stage]} for stage, name, _ in variant.changes)


def test_groups_are_chosen_by_name():
    assert {v.group for v in mechanisms.choose(VARIED, ["prior", "vfi"])} == {"prior", "vfi"}
    assert mechanisms.choose(VARIED, []) == VARIED
    with pytest.raises(InputError, match="did you mean 'prior'"):
        mechanisms.choose(VARIED, ["proir"])


def test_variants_that_would_be_the_same_are_left_out_by_name():
    same = {"image_guidance": "there is no scale for it"}
    kept, lines = mechanisms.telling((FULL, *VARIED[1:]), NUMBERS, {"i2v": same, "v2v": same})
    assert not [variant for variant in kept if variant.group == "image-guidance"]
    told = "i2v image_guidance has no effect: there is no scale for it"
    full = "is the same as 'the full cascade'"
    assert any(line.startswith(f"'image guidance 3' {full} ({told}; v2v ") for line in lines)
    assert f"'V2V strength 0.5' {full}" in lines  # it is that already
    # Without a prior its variants go, and what switches it off beside others is those others.
    off = {**NUMBERS, "i2v": {**NUMBERS["i2v"], "noise_prior": 0.0}}
    kept, lines = mechanisms.telling((FULL, *OFF, *VARIED), off, {})
    assert "'no noise prior' is the same as 'the full cascade'" in lines
    assert "'nothing of the picture' is the same as 'neither tokens nor ControlNet'" in lines
    assert {"no image tokens", "noise prior 0.5", "no V2V: keyframes enlarged"} <= {
        variant.name for variant in kept
    }
    # V2V's numbers are nothing to variants without it.
    without = [Variant("a", "v2v", skip=frozenset({"v2v"}))]
    without.append(Variant("b", "v2v", (("v2v", "guidance", 1.0),), frozenset({"v2v"})))
    assert len(mechanisms.telling(without, NUMBERS, {})[0]) == 1


def test_numbers_without_effect_are_not_handed_on():
    class Strict(Counting):
        def _level(self, stage, numbers):
            assert "image_guidance" not in numbers
            return super()._level(stage, numbers)

    idle = {stage: {"image_guidance": "none"} for stage in ("i2v", "v2v")}
    Bench(Strict(), ["a"], [0], NUMBERS, idle=idle).make(FULL)
