"""`mv2 verify` sees a conversion's mistakes: generated ones, and those that it once overlooked.

Generated are mistakes in every field of every config, and one for every rule of every table, which
spoils a tensor in one of several ways.

A mutant is a cascade in memory with one mistake in it. Each is caught if the verdict differs, or if
the network does not run. The few that nobody can catch are listed with the reason (`SURVIVE`).
"""

import collections
import dataclasses
import functools
import re

import numpy as np
import pytest
from converting import convert
from safetensors.numpy import save_file

from mv2_jax import bundle as bundles
from mv2_jax import params as trees
from mv2_jax.convert import verify
from mv2_jax.errors import InputError

pytest.importorskip("torch"), pytest.importorskip("diffusers")

UP = "up_blocks.1.attentions.0.transformer_blocks.0.attn1"
LORA = "up_blocks_1/attentions_0/transformer_blocks_0/attn1"
PARTS = ("spatial", "vae", "text_encoder", "image_encoder", "image_attn", "control", "motion_i2v")
STAGES = ("t2i", "i2v", "v2v")
# Another value for a field of a config; numbers and tuples of them change by themselves.
OTHERS = {
    "activation": "quick_gelu",
    "kind": "linear",
    "norm_scope": "clip",
    "resnet_norm_scope": "clip",
    "prediction": "v",
    "spacing": "trailing",
    "blend": "flat",
    "sampler": "euler",
}
SURVIVE = {
    "size_ids_width": "SD1.5's UNet does not read sizes",
    "i2v.final_alpha_one": "AnimateDiff is published with either",
    "v2v.final_alpha_one": "AnimateDiff is published with either",
}


class Mutant:
    """A cascade with other configs, parameters or stages."""

    def __init__(self, whole, configs=None, changes=None, stages=None):
        self._whole, self._configs, self._changes = whole, configs or {}, changes or {}
        self.components, self.folder = whole.components, whole.folder
        self.stages = {**whole.stages, **(stages or {})}

    def config(self, name):
        return self._configs.get(name, self._whole.config(name))

    @functools.cache  # noqa: B019
    def load(self, name):
        tree = self._whole.load(name)
        return self._changes[name](tree) if name in self._changes else tree


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory):
    """A cascade with a LoRA in it, what it was made of, and what the LoRA adds."""
    from mv2_jax.convert import compare

    root = tmp_path_factory.mktemp("mutants")
    rng = np.random.default_rng(0)
    down, up = rng.normal(size=(3, 64)), 0.1 * rng.normal(size=(64, 3))
    stem = f"lora_unet_{UP.replace('.', '_')}_to_q"
    file = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    file = {name: half.astype(np.float32) for name, half in file.items()}
    save_file({**file, f"{stem}.alpha": np.float32([6.0])}, root / "lora.safetensors")
    flags = {"unet": "pipeline", "motion": "motion", "image-adapter": "adapter.safetensors"}
    flags |= {"image-encoder": "vision", "controlnet": "controlnet"}
    words = [w for name, path in flags.items() for w in (f"--{name}", sources / path)]
    words += ["--lora", f"{root / 'lora.safetensors'}:0.5", "-o", root / "c"]
    assert convert(*words) == 0
    made = bundles.read(root / "c")
    return made, compare.rebuild(made, verify.read_origins(made)[0]), (up @ down).T


def caught(whole, mutant, name):
    """Whether the verdict on a component or a stage of a mutant is that it differs."""
    from mv2_jax.convert import compare, compare_stages

    built = whole[1]
    try:
        if name in STAGES:
            return not compare_stages.stage(mutant, built, {}, name).same
        return not compare.component(mutant, built, name).same
    except InputError:
        return True


def another(name, value):
    """Another value of a config's field, or None where there is none of its kind."""
    if name in OTHERS:
        return OTHERS[name] if OTHERS[name] != value else "gelu_new"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value // 2 if value > 1 else value + 1
    if isinstance(value, float):
        return value * 1.5 if value else 0.25
    if isinstance(value, tuple) and value:
        return (another(name, value[0]), *value[1:])
    return None


def fields(cfg, path=()):
    """(path of a field, the config with another value there) of every field, nested ones too."""
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            for inner, made in fields(value, (*path, field.name)):
                yield inner, dataclasses.replace(cfg, **{field.name: made})
            continue
        new = another(field.name, value)
        if new is None:
            continue
        try:
            yield (*path, field.name), dataclasses.replace(cfg, **{field.name: new})
        except ValueError:
            continue  # the config itself refuses it


def config_mutants(made, part):
    """(name of the mistake, the mutant) of every field of a component's config."""
    for path, cfg in fields(made.config(part)):
        yield f"{part}.{'.'.join(path)}", Mutant(made, {part: cfg})


def stage_mutants(made, stage):
    """Of every field of a stage's schedule, and some of its UNet's."""
    mine = made.stages[stage]
    for path, schedule in fields(mine.schedule):
        changed = dataclasses.replace(mine, schedule=schedule)
        yield f"{stage}.{path[-1]}", Mutant(made, stages={stage: changed})
    for path, unet in list(fields(mine.unet))[:3]:
        changed = dataclasses.replace(mine, unet=unet)
        yield f"{stage}.unet.{path[-1]}", Mutant(made, stages={stage: changed})


def kinds_of_tensors(leaves):
    """One leaf of every rule: leaves that differ in numbers alone were filled by the same."""
    first = {}
    for name in leaves:
        first.setdefault(re.sub(r"\d+", "#", name), name)
    return list(first.values())


def mistakes(leaf, array):
    """What a wrong rule does to a tensor: (name, the tensor then), those that change it."""
    half = array.copy()
    half[half.shape[0] // 2 :] = 0
    yield "half of it zero", half
    if array.ndim == 2 and array.shape[0] == array.shape[1]:
        yield "transposed", np.ascontiguousarray(array.T)
    if array.ndim == 4 and array.shape[0] > 1:
        yield "flipped", np.ascontiguousarray(array[::-1, ::-1])
        yield "axes swapped", np.ascontiguousarray(array.transpose(1, 0, 2, 3))
    if array.ndim == 2 and array.shape[1] % 3 == 0:
        yield "parts swapped", np.roll(array, array.shape[1] // 3, axis=1)


def with_leaf(leaf, array):
    return lambda tree: trees.unflatten({**trees.flatten(tree), leaf: array})


def tensor_mutants(made, part):
    """Of every rule one tensor, spoiled in one of several ways."""
    leaves = trees.flatten(made.load(part))
    by_shape = collections.defaultdict(list)
    for name, array in leaves.items():
        by_shape[array.shape].append(name)
    for k, leaf in enumerate(kinds_of_tensors(leaves)):
        found = dict(mistakes(leaf, leaves[leaf]))
        twins = [n for n in by_shape[leaves[leaf].shape] if n != leaf]
        if twins:
            found["another's numbers"] = leaves[twins[k % len(twins)]]
        what = list(found)[k % len(found)]
        yield f"{part}.{leaf}: {what}", Mutant(made, changes={part: with_leaf(leaf, found[what])})


def lora_mutants(made, change):
    """A LoRA seven times too strong; one merged into the keys where it is for the queries."""

    def strong(tree):
        leaves = trees.flatten(tree)
        name = f"{LORA}/to_q/kernel"
        more = leaves[name] + (6 * 0.5 * 2.0 * change).astype(np.float16)
        return trees.unflatten({**leaves, name: more})

    def misplaced(tree):
        leaves, added = trees.flatten(tree), (0.5 * 2.0 * change).astype(np.float16)
        q, k = (f"{LORA}/to_{x}/kernel" for x in "qk")
        return trees.unflatten({**leaves, q: leaves[q] - added, k: leaves[k] + added})

    def half(tree):
        leaves, added = trees.flatten(tree), (0.25 * 2.0 * change).astype(np.float16)
        name = f"{LORA}/to_q/kernel"
        return trees.unflatten({**leaves, name: leaves[name] - added})

    for name, wrong in (("7 times", strong), ("to_k", misplaced), ("half", half)):
        yield f"a LoRA: {name}", Mutant(made, changes={"spatial": wrong})


def rows_zeroed(leaf, start, count):
    def change(tree):
        leaves = trees.flatten(tree)
        array = leaves[leaf].copy()
        array[start : start + count] = 0
        return trees.unflatten({**leaves, leaf: array})

    return change


def overlooked(made):
    """What `verify` once called the same."""
    words, motion, vae = "text_encoder", "motion_i2v", "vae"
    text = made.config(words)
    still = made.stages["t2i"]
    yield "heads", words, Mutant(made, {words: dataclasses.replace(text, heads=2)})
    gelu = dataclasses.replace(text, activation="quick_gelu")
    yield "activation", words, Mutant(made, {words: gelu})
    changes = {words: rows_zeroed("embeddings/token_embedding/embedding", 30_000, 30)}
    yield "30 token embeddings", words, Mutant(made, changes=changes)
    for prediction, beta_end in (("v", 0.012), ("eps", 0.013)):
        schedule = dataclasses.replace(still.schedule, prediction=prediction, beta_end=beta_end)
        stage = dataclasses.replace(still, schedule=schedule)
        yield f"{prediction} {beta_end}", "t2i", Mutant(made, stages={"t2i": stage})
    positions = "down_blocks_0/motion_modules_0/transformer_blocks_0/attn1/pe"
    changes = {motion: rows_zeroed(positions, 6, 2)}
    yield "the last positions", motion, Mutant(made, changes=changes)
    scope = dataclasses.replace(made.config(motion), norm_scope="clip")
    yield "the norms' scope", motion, Mutant(made, {motion: scope})
    changes = {vae: lambda tree: _last_half(tree, "quant_conv/kernel")}
    yield "half of quant_conv", vae, Mutant(made, changes=changes)


def _last_half(tree, leaf):
    leaves = trees.flatten(tree)
    array = leaves[leaf].copy()
    array[..., array.shape[-1] // 2 :] = 0
    return trees.unflatten({**leaves, leaf: array})


def test_what_was_once_overlooked(whole):
    made = whole[0]
    sane = Mutant(made)
    for part in ("text_encoder", "motion_i2v", "vae", "t2i"):
        assert not caught(whole, sane, part), part
    found = {name: caught(whole, mutant, part) for name, part, mutant in overlooked(made)}
    assert len(found) == 8 and all(found.values()), found


@pytest.mark.long
@pytest.mark.parametrize("part", [*STAGES, *reversed(PARTS)])
def test_no_generated_mistake_is_the_same(whole, part):
    made, _, change = whole
    assert not caught(whole, Mutant(made), part)
    mine = list(stage_mutants(made, part) if part in STAGES else config_mutants(made, part))
    if part in PARTS:
        mine += tensor_mutants(made, part)
    if part == "spatial":
        mine += lora_mutants(made, change)
    alive = [name for name, mutant in mine if not caught(whole, mutant, part)]
    excused = [n for n in alive if n in SURVIVE or n.rpartition(".")[2] in SURVIVE]
    print(f"{part}: {len(mine)} mistakes, {len(mine) - len(alive)} caught; excused: {excused}")
    assert not set(alive) - set(excused), sorted(set(alive) - set(excused))
