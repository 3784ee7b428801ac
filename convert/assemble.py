"""From sources to a whole cascade: which network fills which slot, and whether they fit together.

built = assemble(Wanted(unet="sd15.safetensors", motion="v3_sd15_mm.ckpt", ...))
write(built, "my-cascade")
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mv2_jax import bundle, files
from mv2_jax.bundle import CONTROLS
from mv2_jax.config import StageConfig, UNetConfig
from mv2_jax.convert import (
    distilled,
    embeddings,
    lora_merge,
    pending,
    schedules,
    sources,
    staging,
)
from mv2_jax.convert.checkpoint import Checkpoint, SourceNetwork, open_checkpoint
from mv2_jax.convert.kinds import image_adapter, interpolator
from mv2_jax.convert.kinds import vae as vaes
from mv2_jax.convert.kinds.motion import HOTSHOT
from mv2_jax.convert.pending import PendingNetwork
from mv2_jax.errors import InputError
from mv2_jax.numbers import DIFFUSION
from mv2_jax.text import CLIPTokenizer, Embedding

Networks = dict[str, PendingNetwork]  # by component
SOURCES = "sources.json"
# Where an IP-Adapter's publisher keeps the vision encoder that it reads, beside the adapter.
_ENCODER = "image_encoder"
_FLAGS = {
    "motion_i2v": "--motion",
    "image_encoder": "--image-encoder",
    "image_attn": "--image-adapter",
    "control": "--controlnet",
    "text_encoder": "--text-encoder",
    "vae": "--vae",
}


@dataclass(frozen=True)
class Wanted:
    """What a user asks for: sources as paths or hub ids, and how to store and run them.

    `lora` and `motion_lora` are (source, weight, stages), no stages for all; `embedding`
    (source, name or None for its own, stages). `variant` ("fp16") is preferred where a folder has
    it. Without `image_encoder`, a folder of that name beside the adapter is taken where it fits.
    `controlnet` is one, or several that add up. `norm_scope` overrides what is known of the motion
    modules.
    `preset` (a key of `configs.presets.PRESETS`) gives the sizes and frames that
    `sizes`, (height, width) in pixels by stage, and `frames` do not. `few_steps`: a key of
    `configs.few_steps.FEW_STEPS`, for motion modules distilled to few steps; `t2i_few_steps`: one
    of `PICTURE_STEPS`, or "none", for T2I. `sampled` and `t2i_sampled` say of the UNet's and of
    T2I's own checkpoint what they do not say, or say wrongly. `vfi`: an interpolator's file.
    `ignore`: patterns ("first_stage_model.loss.*") of tensors that are left out of every source.
    `kinds`: of networks from outside the package, `module:NAME`, for `mv2 verify` to know.
    """

    unet: str
    vae: str | None = None
    text_encoder: str | None = None
    motion: str | None = None
    motion_v2v: str | None = None
    image_adapter: str | None = None
    image_encoder: str | None = None
    controlnet: str | Sequence[str] | None = None
    t2i: str | None = None
    t2i_vae: str | None = None
    t2i_text_encoder: str | None = None
    lora: tuple[tuple[str, float, tuple[str, ...]], ...] = ()
    motion_lora: tuple[tuple[str, float, tuple[str, ...]], ...] = ()
    embedding: tuple[tuple[str, str | None, tuple[str, ...]], ...] = ()
    variant: str | None = None
    norm_scope: str | None = None
    preset: str | None = None
    frames: int | None = None
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    few_steps: str | None = None
    t2i_few_steps: str | None = None
    sampled: schedules.Override = schedules.Override()
    t2i_sampled: schedules.Override = schedules.Override()
    vfi: str | None = None
    ignore: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Built:
    """A cascade whose parts are known to fit, and none of whose numbers has been read yet.

    `still` is how T2I is sampled, and who says so. `asked` is what the user said that no source
    does, for `mv2 verify`. `tokenizer` knows the embeddings.
    """

    networks: Networks
    stages: dict[str, StageConfig]
    defaults: dict[str, dict[str, float]]
    still: schedules.Program
    asked: dict[str, Any]
    tokenizer: CLIPTokenizer

    @property
    def missing(self) -> list[str]:
        """The components that `mv2 generate` needs and this cascade lacks."""
        return [name for name in bundle.NEEDED if name not in self.networks]

    @property
    def advice(self) -> str:
        """The flags that would bring what is missing."""
        return ", ".join(_FLAGS[name] for name in self.missing if name in _FLAGS)


def assemble(wanted: Wanted) -> Built:
    """Opens every source and fits the parts together.

    Raises:
        InputError: a source that is not there, is damaged, holds something else, or does not fit
            the others.
    """
    opened = functools.cache(lambda asked: open_checkpoint(asked, wanted.variant, wanted.ignore))
    base = opened(wanted.unet)
    built = {"spatial": pending.plain(base.one("unet"))}
    unet = built["spatial"].config
    pending.check("spatial", built)
    decoder = opened(wanted.vae) if wanted.vae else base
    if wanted.vae or decoder.all("vae"):
        built["vae"] = _vae(decoder, unet, alone=decoder is not base)
    words = opened(wanted.text_encoder) if wanted.text_encoder else base
    if wanted.text_encoder or words.all("text_encoder"):
        built |= _texts(words, unet)
    moved = wanted.motion or (wanted.unet if base.all("motion") else None)
    if any(found.part.layout != HOTSHOT for found in base.all("motion")):
        base, wanted = _of_modules(base, wanted)
    if moved:
        built["motion_i2v"] = _motion(base if moved is wanted.unet else opened(moved), wanted, unet)
        built["motion_v2v"] = built["motion_i2v"]
    if wanted.motion_v2v:
        built["motion_v2v"] = _motion(opened(wanted.motion_v2v), wanted, unet)
    built |= _looks(wanted, unet, opened)
    nets = [wanted.controlnet] if isinstance(wanted.controlnet, str) else wanted.controlnet or ()
    if len(nets) > len(CONTROLS):
        raise InputError(f"--controlnet: {len(CONTROLS)} at most, not {len(nets)}")
    for name, asked in zip(CONTROLS, nets):
        built[name] = pending.plain(opened(asked).one("controlnet"), built)
    if wanted.vfi:
        between = pending.plain(opened(wanted.vfi).one("interpolator"))
        built[interpolator.component(between.config)] = between
    picture = base
    if wanted.t2i:
        picture = opened(wanted.t2i)
        vae, words = wanted.t2i_vae, wanted.t2i_text_encoder
        decoder = opened(vae) if vae else picture
        built |= _picture(picture, decoder, opened(words) if words else picture)
    else:
        _shared(wanted)
    for name in built:
        pending.check(name, built)
    if wanted.variant and all(network.found.variant is None for network in built.values()):
        raise InputError(f"--variant {wanted.variant}: no source has {wanted.variant} weights")
    built, merged = _with_loras(built, wanted, opened)
    told, wanted = wanted, distilled.applied(wanted, built, merged)
    wanted, named = distilled.by_name(wanted, picture)
    built, embedded = _with_words(built, wanted, opened)
    for network in built.values():
        _ = network.stored  # whatever does not fit is found before anything is written
    few = {stage: staging.few_steps_of(wanted, built, stage) for stage in ("i2v", "v2v")}
    own = wanted.t2i_few_steps
    if picture is base:
        still = program = schedules.still(base, unet, wanted.sampled, own)
    else:
        program = schedules.still(base, unet, wanted.sampled)
        still = schedules.still(picture, built["t2i_unet"].config, wanted.t2i_sampled, own)
    if not told.t2i_few_steps:
        network = built["spatial" if picture is base and "t2i_unet" not in built else "t2i_unet"]
        still = distilled.counted(still, own, network, merged)
    if named:
        still = distilled.told_by_name(still, named)
    moving = {
        stage: schedules.video(program.schedule, unet, built[name].found.part.layout)
        for stage in ("i2v", "v2v")
        if (name := f"motion_{stage}") in built
    }
    stages = staging.stages(built, wanted, few, still, moving)
    numbers = staging.defaults(few, still)
    tokenizer = embeddings.tokenizer(built.get("text_encoder"), embedded)
    return Built(built, stages, numbers, still, _asked(wanted), tokenizer)


def _of_modules(base: Checkpoint, wanted: Wanted) -> tuple[Checkpoint, Wanted]:
    """Of a UNetMotionModel: its pipeline's scheduler is the modules', whose betas are linear."""
    predicts = (base.schedule or {}).get("prediction_type")
    if predicts == "v_prediction" and not wanted.sampled.prediction:
        said = dataclasses.replace(wanted.sampled, prediction="v")
        wanted = dataclasses.replace(wanted, sampled=said)
    return dataclasses.replace(base, schedule=None), wanted


def _looks(wanted: Wanted, unet: UNetConfig, opened: Callable[[str], Checkpoint]) -> Networks:
    """The picture's tokens: an adapter, and its encoder, which may lie beside it."""
    made = {}
    if wanted.image_adapter:
        found = opened(wanted.image_adapter).one("image_adapter")
        made["image_attn"] = pending.image_attention(found, unet)
        beside = found.path.parent / _ENCODER
        if not wanted.image_encoder and beside.is_dir():
            encoder = pending.plain(opened(str(beside)).one("image_encoder"))
            if image_adapter.reads(made["image_attn"].config, encoder.config):
                made["image_encoder"] = encoder
    if wanted.image_encoder:
        made["image_encoder"] = pending.plain(opened(wanted.image_encoder).one("image_encoder"))
    return made


def _with_loras(
    built: Networks, wanted: Wanted, opened: Callable[[str], Checkpoint]
) -> tuple[Networks, list[SourceNetwork]]:
    """The parts with every LoRA merged, and the LoRAs."""
    merged = []
    for kind, given in (("lora", wanted.lora), ("motion_lora", wanted.motion_lora)):
        names = [(asked, stage) for asked, _, to in given for stage in to or DIFFUSION]
        if len(set(names)) < len(names):
            raise InputError(f"--{kind.replace('_', '-')}: one is given twice; add up its weights")
        for asked, weight, to in given:
            found = opened(asked).one(kind)
            built = lora_merge.merge_into(built, found, weight, to)
            merged.append(found)
    return built, merged


def _with_words(
    built: Networks, wanted: Wanted, opened: Callable[[str], Checkpoint]
) -> tuple[Networks, list[Embedding]]:
    """The parts with every textual inversion embedding, and these."""
    words: list[Embedding] = []
    for asked, called, to in wanted.embedding:
        built, new = _with_embeddings(built, opened(asked), called, to)
        for each in new:
            embeddings.unlike(words, each)
            words.append(each)
    return built, words


def write(
    built: Built, folder: str | os.PathLike[str], *, dtype: Any, name: str, replace: bool = False
) -> bundle.Bundle:
    """Writes the cascade folder, which appears whole or not at all; see `bundle.write`.

    Beside what every cascade folder has, `sources.json` says where each component came from, for
    `mv2 verify`.
    """
    parts: dict[int, bundle.Part] = {}
    for network in built.networks.values():
        if id(network) not in parts:
            merged = "".join(f" + {weight:g} x {Path(path).name}" for path, weight in network.loras)
            title = f"{network.found.part.title} of {network.found.asked}{merged}"
            licence = "as its publisher says"
            parts[id(network)] = bundle.Part(network.pending(dtype), network.config, licence, title)
    sums = functools.cache(files.sha256)
    origins = {name: _origin(network, sums) for name, network in built.networks.items()}
    if built.asked:
        origins["asked"] = built.asked
    return bundle.write(
        folder,
        {name: parts[id(network)] for name, network in built.networks.items()},
        built.stages,
        built.tokenizer.to_json(),
        name=name,
        defaults=built.defaults,
        texts={SOURCES: json.dumps(origins, indent=1) + "\n"},
        replace=replace,
    )


def _with_embeddings(
    built: Networks, source: Checkpoint, called: str | None, stages: tuple[str, ...]
) -> tuple[Networks, list[Embedding]]:
    """The networks with all embeddings of a source, which are not to have one name."""
    held = source.all("embedding") or [source.one("embedding")]
    if called and len(held) > 1:
        raise InputError(f"{source.asked} holds {len(held)} embeddings: {called} names one")
    made = []
    for found in held:
        built, new = embeddings.put_into(built, found, called, stages)
        made.append(new)
    return built, made


def _shared(wanted: Wanted) -> None:
    """Refuses what is said of T2I's own checkpoint where it has none."""
    for flag, given, other in (
        ("vae", wanted.t2i_vae, "--vae"),
        ("text-encoder", wanted.t2i_text_encoder, "--text-encoder"),
        ("prediction", wanted.t2i_sampled.prediction, "--prediction"),
        ("schedule", wanted.t2i_sampled.schedule, "--schedule"),
    ):
        if given:
            raise InputError(
                f"--t2i-{flag} goes with --t2i; for the shared checkpoint there is {other}"
            )


def _motion(source: Checkpoint, wanted: Wanted, unet: UNetConfig) -> PendingNetwork:
    found = source.one("motion")
    if wanted.norm_scope:
        cfg = dataclasses.replace(found.part.config, norm_scope=wanted.norm_scope)
        found = dataclasses.replace(found, part=dataclasses.replace(found.part, config=cfg))
    return pending.motion(found, unet)


def _picture(source: Checkpoint, decoder: Checkpoint, words: Checkpoint) -> Networks:
    """T2I's own networks."""
    unet = pending.plain(source.one("unet"))
    texts = _texts(words, unet.config)
    return {
        "t2i_unet": unet,
        "t2i_vae": _vae(decoder, unet.config, alone=decoder is not source),
        **{f"t2i_{name}": network for name, network in texts.items()},
    }


def _vae(source: Checkpoint, unet: UNetConfig, *, alone: bool) -> PendingNetwork:
    """The VAE of a source; one that came alone may be SDXL's."""
    vae = source.one("vae")
    if alone and unet.pooled_width and "scaling_factor" not in vae.settings:
        # A bare file does not say whose VAE it is; beside SDXL's UNet it is SDXL's.
        config = dataclasses.replace(vae.part.config, scaling_factor=vaes.SCALING_SDXL)
        part = dataclasses.replace(vae.part, config=config, title=vaes.title(config))
        vae = dataclasses.replace(vae, part=part)
    return pending.plain(vae)


def _texts(source: Checkpoint, unet: UNetConfig) -> Networks:
    """The text encoders of a UNet. SDXL has two; the second's projection its UNet takes."""
    pooled = unet.pooled_width
    if pooled is None:
        return {"text_encoder": pending.plain(source.one("text_encoder"))}
    texts = [pending.plain(found) for found in source.all("text_encoder")]
    second = [text for text in texts if text.config.projection == pooled]
    first = [text for text in texts if text not in second]
    if len(first) != 1 or len(second) != 1:
        raise InputError(
            f"{source.asked}: SDXL's UNet wants two text encoders (the second with a projection "
            f"{pooled} wide), and {len(texts)} came with it"
        )
    width = sum(text.config.width for text in texts)
    if width != unet.context_width:
        raise InputError(
            f"{source.asked}: its UNet reads text {unet.context_width} wide, its text "
            f"encoders write {width}"
        )
    return {"text_encoder": first[0], "text_encoder_2": second[0]}


def _asked(wanted: Wanted) -> dict[str, Any]:
    """What the user said that no source does."""
    said = {
        "norm_scope": wanted.norm_scope,
        "few_steps": wanted.few_steps,
        "t2i_few_steps": wanted.t2i_few_steps,
        "t2i": wanted.t2i is not None,
        "ignore": list(wanted.ignore),
        "kinds": list(wanted.kinds),
        "sampled": {k: v for k, v in dataclasses.asdict(wanted.sampled).items() if v},
        "t2i_sampled": {k: v for k, v in dataclasses.asdict(wanted.t2i_sampled).items() if v},
    }
    return {key: value for key, value in said.items() if value}


def _origin(network: PendingNetwork, sums: Callable[[Path], str]) -> dict[str, Any]:
    """Where a component came from, and what tells whether that is still the same."""
    found, rows = network.found, [[rows.path, rows.name] for rows in network.rows]
    return {
        "kind": found.part.kind,
        "title": found.part.title,
        "layout": found.part.layout,
        "asked": found.asked,
        "path": str(found.path),
        "variant": found.variant,
        "sha256": {path.name: sums(path) for path in sources.paths(found.path, found.variant)},
        "loras": [[path, weight] for path, weight in network.loras],
        **({"embeddings": rows} if rows else {}),
    }
