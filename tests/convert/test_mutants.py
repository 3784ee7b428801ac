"""`mv2 verify` sees a conversion's mistakes: generated ones, and those that it once overlooked.

Generated are mistakes in every field of every config, and for every rule of every table all that
may go wrong with a tensor of it.

A mutant is a cascade in memory with one mistake in it. Each is caught if the verdict differs, or if
the network does not run. The few that nobody can catch are listed with the reason (`SURVIVE`).
"""

import collections
import copy
import dataclasses
import re

import jax
import numpy as np
import pytest
from converting import convert
from safetensors.numpy import save_file

from mv2_jax import bundle, params
from mv2_jax.config import MotionConfig
from mv2_jax.convert import verify
from mv2_jax.errors import InputError

pytest.importorskip("torch"), pytest.importorskip("diffusers")

UP = "up_blocks.1.attentions.0.transformer_blocks.0.attn1"
LORA = "up_blocks_1/attentions_0/transformer_blocks_0/attn1"
PARTS = ("spatial", "vae", "text_encoder", "image_encoder", "image_attn", "control", "motion_i2v")
STAGES = ("t2i", "i2v", "v2v")
# Other values for a field of a config; numbers, and tuples of them, change by themselves.
OTHERS = {
    "activation": ("quick_gelu", "gelu"),
    "kind": ("linear", "scaled_linear", "resampler"),
    "norm_scope": ("clip", "frame"),
    "resnet_norm_scope": ("clip", "frame"),
    "prediction": ("v", "eps"),
    "spacing": ("trailing", "leading"),
    "blend": ("flat", "pyramid"),
    "context": ("uniform", "static"),
    "sampler": ("euler", "ddim"),
    "rule": ("apart", "public"),
    "pooled_width": (24,),
    "projection": (24, 16),
    "decoder_channels": ((32, 64),),
    "motion": (MotionConfig(),),
    "window": (2,),
    "overlap": (1,),
    "conditions": (("text",),),
}
_CHOICE = "the user's choice: the network and its noise levels are the same"
_LONG = ("context", "tile")  # how long clips and large planes are cut
_KEYS = "softmax does not see what is added to all keys alike"
_LAYOUT = "only the converter reads it: as a 1x1 convolution or as a matrix, the product is one"
_SUM = "both are added to the same channels: exchanged, their sum is one"
_RESNET = "up_blocks_0/resnets_0"
_ATTENTION = "mid_block/attentions_0/to_k/bias"
_SELF = "encoder/layers_0/self_attn/k_proj/bias"
SURVIVE = {
    **{
        f"{stage}.{field}": _CHOICE
        for stage in STAGES
        for field in ("size", "frames", "steps", "sampler", "window", "overlap", "blend", *_LONG)
    },
    "i2v.schedule.final_alpha_one": "AnimateDiff is published with either",
    "v2v.schedule.final_alpha_one": "AnimateDiff is published with either",
    "spatial.linear_projection": _LAYOUT,
    "control.unet.linear_projection": _LAYOUT,
    "control.type_layers": "a plain ControlNet has no kinds that would go through them",
    "control.unet.out_channels": "a ControlNet has no convolution at its end",
    "spatial.size_ids_width": "SD1.5's UNet does not read sizes",
    "control.unet.size_ids_width": "SD1.5's ControlNet does not read sizes",
    f"spatial.{_RESNET}/conv1/bias: exchanged with {_RESNET}/time_emb_proj/bias": _SUM,
    f"vae.decoder/{_ATTENTION}: 2 parts in another order": _KEYS,
    f"vae.encoder/{_ATTENTION}: 2 parts in another order": _KEYS,
    f"text_encoder.{_SELF}: 2 parts in another order": _KEYS,
    f"image_encoder.{_SELF}: 2 parts in another order": _KEYS,
    f"image_encoder.{_SELF}: 3 parts in another order": _KEYS,
}


class Mutant:
    """A cascade with other configs, leaves of parameters, or stages; its files are read once."""

    def __init__(self, whole, configs=None, leaves=None, stages=None):
        self._whole, self._configs, self._leaves = whole, configs or {}, leaves or {}
        self.components, self.folder = whole.components, whole.folder
        self.stages = {**whole.stages, **(stages or {})}
        self._trees = {}

    def config(self, name):
        return self._configs.get(name, self._whole.config(name))

    def load(self, name):
        if name not in self._trees:
            tree = self._whole.load(name)
            if name in self._leaves:
                tree = params.unflatten({**params.flatten(tree), **self._leaves[name]})
            self._trees[name] = tree
        return self._trees[name]


class Verifier:
    """`verify` on many mutants of a cascade: what a mistake leaves as it was is not made anew.

    The references are filled once, ours compiled once for a config, and a mutant whose settings or
    numbers tell it is not run.
    """

    def __init__(self, made, patch):
        from mv2_jax.convert import compare, compare_networks, reference

        self.made = made
        self.built = compare.rebuild(made, verify.read_origins(made)[0])
        self._numbers, self._nets, self._programs, self._counts = {}, {}, {}, {}
        module, census, theirs = reference.module, compare.census, compare_networks._numbers

        def filled(network, dtype, unet):
            key = (id(network), dtype)
            if key not in self._nets:
                self._nets[key] = module(network, dtype, unet)
            return copy.deepcopy(self._nets[key])

        def ours(run, job):
            key = (job.name, job.config)
            if key not in self._programs:
                self._programs[key] = compare_networks.compiled(run)
            return jax.tree.map(np.asarray, self._programs[key](job.ours))

        def counted(array):
            if id(array) not in self._counts:  # kept with its array: no other gets that id
                self._counts[id(array)] = array, census(array)
            return self._counts[id(array)][1]

        def numbers(state, job):
            key = (job.name, job.dtype)
            if key not in self._numbers:
                self._numbers[key] = theirs(state, job)
            return self._numbers[key]

        patch.setattr(reference, "module", filled)
        patch.setattr(compare_networks, "_ours", ours)
        patch.setattr(compare_networks, "_numbers", numbers)
        patch.setattr(compare, "census", counted)
        patch.setattr(compare.gc, "collect", lambda: 0)

    def caught(self, mutant, name):
        """Whether the verdict on a component or a stage of a mutant is that it differs."""
        from mv2_jax.convert import compare, compare_networks, compare_stages

        try:
            if name in STAGES:
                return not compare_stages.stage(mutant, self.built, {}, name).same
            job = compare_networks.Job(mutant, name, self.built[name], self.built)
            known = self._numbers.get((name, job.dtype))
            if known and (any(compare.facts(job)) or any(compare.tables(job, known))):
                return True  # it needs no run
            return not compare.component(mutant, self.built, name).same
        except InputError:
            return True


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory):
    """A cascade with a LoRA in it, what verifies it, and what the LoRA adds."""
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
    made = Mutant(bundle.read(root / "c"))
    with pytest.MonkeyPatch.context() as patch:
        yield made, Verifier(made, patch), (up @ down).T


def another(name, value):
    """Another value of a config's field, or None where there is none of its kind."""
    if name in OTHERS:
        return next((other for other in OTHERS[name] if other != value), None)
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
        assert new is not None, f"{field.name}: {value!r} has no other value here"
        try:
            yield (*path, field.name), dataclasses.replace(cfg, **{field.name: new})
        except ValueError:
            continue  # the config itself refuses it


def config_mutants(made, part):
    """(name of the mistake, the mutant) of every field of a component's config."""
    for path, cfg in fields(made.config(part)):
        yield f"{part}.{'.'.join(path)}", Mutant(made, {part: cfg})


def stage_mutants(made, stage):
    """The same of a stage's config, which holds its schedule's and its UNet's."""
    for path, changed in fields(made.stages[stage]):
        yield f"{stage}.{'.'.join(path)}", Mutant(made, stages={stage: changed})


def kinds_of_tensors(leaves):
    """One leaf of every rule: those that differ in a block's or a layer's number share theirs."""
    first = {}
    for name in leaves:
        first.setdefault(re.sub(r"_\d+", "_#", name), name)
    return list(first.values())


def mistakes(leaf, leaves, twin):
    """What a wrong rule does to a tensor: (name, the leaves that are then others).

    twin: another leaf of this shape, or None.
    """
    array = leaves[leaf]
    half = array.copy()
    half[half.shape[0] // 2 :] = 0
    yield "half of it zero", {leaf: half}
    if array.ndim == 2 and array.shape[0] == array.shape[1]:
        yield "transposed", {leaf: np.ascontiguousarray(array.T)}
    if array.ndim == 4 and array.shape[0] > 1:
        yield "flipped", {leaf: np.ascontiguousarray(array[::-1, ::-1])}
        yield "axes swapped", {leaf: np.ascontiguousarray(array.transpose(1, 0, 2, 3))}
    for parts in (2, 3):
        if array.shape[-1] % parts == 0:
            rolled = np.roll(array, array.shape[-1] // parts, axis=-1)
            yield f"{parts} parts in another order", {leaf: rolled}
    if twin:
        yield f"the numbers of {twin}", {leaf: leaves[twin]}
        yield f"exchanged with {twin}", {leaf: leaves[twin], twin: array}


def tensor_mutants(made, part):
    """Of every rule one tensor, spoiled in every way."""
    leaves = params.flatten(made.load(part))
    by_shape = collections.defaultdict(list)
    for name, array in leaves.items():
        by_shape[array.shape].append(name)
    for k, leaf in enumerate(kinds_of_tensors(leaves)):
        twins = [n for n in by_shape[leaves[leaf].shape] if n != leaf]
        for what, changed in mistakes(leaf, leaves, twins[k % len(twins)] if twins else None):
            yield f"{part}.{leaf}: {what}", Mutant(made, leaves={part: changed})


def lora_mutants(made, change):
    """A LoRA seven times too strong; half of it; one merged into the keys, not the queries."""
    leaves = params.flatten(made.load("spatial"))
    q, k = (f"{LORA}/to_{x}/kernel" for x in "qk")

    def more(name, times):
        return leaves[name] + (times * 0.5 * 2.0 * change).astype(np.float16)

    for name, wrong in (
        ("7 times", {q: more(q, 6)}),
        ("half", {q: more(q, -0.5)}),
        ("into to_k", {q: more(q, -1), k: more(k, 1)}),
    ):
        yield f"a LoRA: {name}", Mutant(made, leaves={"spatial": wrong})


def zeroed(made, part, leaf, where):
    """A mutant of which a part of a leaf is zero."""
    array = params.flatten(made.load(part))[leaf].copy()
    array[where] = 0
    return Mutant(made, leaves={part: {leaf: array}})


def overlooked(made):
    """What `verify` once called the same."""
    words, motion, vae = "text_encoder", "motion_i2v", "vae"
    text = made.config(words)
    still = made.stages["t2i"]
    yield "heads", words, Mutant(made, {words: dataclasses.replace(text, heads=2)})
    gelu = dataclasses.replace(text, activation="quick_gelu")
    yield "activation", words, Mutant(made, {words: gelu})
    rows, table = slice(30_000, 30_030), "embeddings/token_embedding/embedding"
    yield "30 token embeddings", words, zeroed(made, words, table, rows)
    for prediction, beta_end in (("v", 0.012), ("eps", 0.013)):
        schedule = dataclasses.replace(still.schedule, prediction=prediction, beta_end=beta_end)
        stage = dataclasses.replace(still, schedule=schedule)
        yield f"{prediction} {beta_end}", "t2i", Mutant(made, stages={"t2i": stage})
    positions = "down_blocks_0/motion_modules_0/transformer_blocks_0/attn1/pe"
    yield "the last positions", motion, zeroed(made, motion, positions, slice(6, 8))
    scope = dataclasses.replace(made.config(motion), norm_scope="clip")
    yield "the norms' scope", motion, Mutant(made, {motion: scope})
    outputs = (..., slice(4, None))
    yield "half of quant_conv", vae, zeroed(made, vae, "quant_conv/kernel", outputs)


def test_what_was_once_overlooked(whole):
    made, verifier, _ = whole
    for part in ("text_encoder", "motion_i2v", "vae", "t2i"):
        assert not verifier.caught(Mutant(made), part), part
    found = {name: verifier.caught(mutant, part) for name, part, mutant in overlooked(made)}
    assert len(found) == 8 and all(found.values()), found


@pytest.mark.long
@pytest.mark.parametrize("part", [*STAGES, *reversed(PARTS)])
def test_no_generated_mistake_is_the_same(whole, part):
    made, verifier, change = whole
    assert not verifier.caught(Mutant(made), part)
    mine = list(stage_mutants(made, part) if part in STAGES else config_mutants(made, part))
    if part in PARTS:
        mine += tensor_mutants(made, part)
    if part == "spatial":
        mine += lora_mutants(made, change)
    alive = [name for name, mutant in mine if not verifier.caught(mutant, part)]
    print(f"{part}: {len(mine)} mistakes, {len(mine) - len(alive)} caught; alive: {alive}")
    assert set(alive) == {name for name in SURVIVE if name.partition(".")[0] == part}
