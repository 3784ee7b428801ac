"""Which seed a video of `mv2 generate` is made from."""

import json

from mv2_jax import cli

PROMPT = "a red ball bouncing over the meadow"


def seeds(here, *names):
    return [json.loads((here / f"{name}.json").read_text())["seed"] for name in names]


def test_two_equal_prompts_and_variations_have_seeds_of_their_own(generate, here):
    assert generate(PROMPT, PROMPT, "the red cube", "--seed", 7) == 0
    assert seeds(here, "out-1", "out-2", "out-3") == [7, 8, 7]
    assert (here / "out-1.mp4").read_bytes() != (here / "out-2.mp4").read_bytes()
    assert generate(PROMPT, "--variations", 3, "--seed", 2**32 - 2, "-o", "v.mp4") == 0
    assert seeds(here, "v-1", "v-2", "v-3") == [2**32 - 2, 2**32 - 1, 0]
    assert generate(PROMPT, "--seed", 8, "-o", "alone.mp4") == 0
    assert (here / "alone.mp4").read_bytes() == (here / "out-2.mp4").read_bytes()
    again = ["generate", "--from", "v-2.json", "--variations", "2", "-o", "w.mp4"]
    assert cli.main(again) == 0 and seeds(here, "w-1", "w-2") == [2**32 - 1, 0]


def test_a_random_seed_is_another_each_time_and_in_the_sidecar(generate, here):
    for name in ("a", "b"):
        assert generate(PROMPT, "--seed", "random", "-o", f"{name}.mp4") == 0
    a, b = seeds(here, "a", "b")
    assert a != b
    assert generate(PROMPT, "--seed", b, "-o", "c.mp4") == 0
    assert (here / "c.mp4").read_bytes() == (here / "b.mp4").read_bytes()
