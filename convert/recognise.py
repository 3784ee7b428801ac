"""What a checkpoint holds, told from the names and shapes of its tensors, never from its own name.

`recognise` finds every network in a file. Each comes as a `Part`: the tensors, the table that reads
them, and a config. Every tensor of the file belongs to a part or is left out by a named rule;
otherwise the file is refused, with words on what it looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mv2_jax.config import UNetConfig
from mv2_jax.convert import ldm, lora, structure
from mv2_jax.convert.engine import Ignore, Table, shorten, under
from mv2_jax.convert.sources import View, spec
from mv2_jax.convert.tables import clip, controlnet, ip_adapter, motion, sparse_control, unet, vae
from mv2_jax.convert.unknown import likeness
from mv2_jax.errors import InputError

KINDS = {
    "unet": "a UNet",
    "vae": "a VAE",
    "text_encoder": "a text encoder",
    "image_encoder": "an image encoder",
    "motion": "motion modules",
    "image_adapter": "an IP-Adapter",
    "controlnet": "a ControlNet",
    "sparse_control": "a SparseCtrl encoder",
    "lora": "a LoRA",
    "motion_lora": "a Motion-LoRA",
}
# What latents are multiplied by, where no config says it.
SCALING, SCALING_SDXL = 0.18215, 0.13025
# Tensors that say how a UNet is sampled and belong to no network; `schedules` reads them.
MARKS = frozenset({"v_pred", "ztsnr", "edm_mean", "edm_std"})
MARKS |= {"edm_vpred.sigma_max", "edm_vpred.sigma_min"}
# What whole training checkpoints hold beside the networks.
_LEFT_OUT = [
    Ignore("model_ema.{x:**}", "a running average of the weights"),
    Ignore("{x:loss|discriminator|perceptual_loss}.{y:**}", "what a VAE was trained against"),
    Ignore("{x:betas|logvar|log_one_minus_alphas_cumprod|lvlb_weights}", "the noise schedule"),
    Ignore("{x:alphas_cumprod|alphas_cumprod_prev}", "the noise schedule"),
    Ignore("{x:posterior|sqrt}_{y:*}", "the noise schedule"),
    Ignore("denoiser.{x:**}", "the noise schedule"),
    Ignore("{x:global_step|epoch|scale_factor}", "the training run's own"),
    Ignore("cond_stage_model.{x:logit_scale|text_projection}", "what CLIP was trained with"),
    Ignore(
        "conditioner.embedders.{i}.{x:logit_scale|text_projection}", "what CLIP was trained with"
    ),
    Ignore("{x:**}.embeddings.position_ids", "0, 1, 2 ... of mergers that know one layout alone"),
]


@dataclass(frozen=True)
class Part:
    """One network of a file.

    kind: a key of `KINDS`. title: what it is, and layout: in whose names, for a person.
    tensors: in the names that `table` reads. config: as its kind has it.
    """

    kind: str
    title: str
    layout: str
    tensors: Mapping[str, Any]
    table: Table
    config: Any


def recognise(source: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> list[Part]:
    """Every network in a file.

    Args:
        source: its tensors (`sources.load`).
        settings: the config.json beside it, where there is one.

    Raises:
        InputError: nothing known in it, tensors that belong to nothing, or a network that the
            modules here cannot be.
    """
    settings = settings or {}
    # FaceID adapters hold LoRAs of their own, and are refused as adapters.
    adapter = any(name.startswith(("image_proj.", "ip_adapter.")) for name in source)
    if not adapter and lora.is_lora(source):
        return [_lora(source)]
    try:
        parts = [part for find in _FINDERS for part in find(source, settings)]
    except structure.Missing as error:
        raise InputError(f"{error}: {likeness(source)}") from None
    if not parts:
        raise InputError(f"nothing known in it: {likeness(source)}")
    claimed = {_origin(part.tensors, name) for part in parts for name in part.tensors}
    others = [name for name in source if name not in claimed | MARKS]
    strange = [n for n in others if not any(r.source_regex.fullmatch(n) for r in _LEFT_OUT)]
    if strange:
        known = " and ".join(part.title for part in parts)
        listed = "; ".join(shorten(strange, limit=4))
        raise InputError(f"it holds {known}, and {len(strange)} tensors of unknown use: {listed}")
    return parts


def _origin(tensors: Mapping[str, Any], name: str) -> str:
    return tensors.origin(name) if isinstance(tensors, View) else name


def _claim(source: Mapping[str, Any], names: Mapping[str, str], table: Table) -> View:
    """The tensors of {name in the table: name in the source} that some rule of the table reads."""
    regexes = [rule.source_regex for rule in table if hasattr(rule, "source_regex")]
    return View(
        source, {n: old for n, old in names.items() if any(r.fullmatch(n) for r in regexes)}
    )


def _shapes(source: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    return {name: spec(source, old).shape for name, old in names.items()}


def _below(source: Iterable[str], prefix: str) -> dict[str, str]:
    """{name without the prefix: name} of all that start with it."""
    return {name.removeprefix(prefix): name for name in source if name.startswith(prefix)}


def _prefixes(source: Iterable[str], mark: str) -> list[str]:
    """What stands before `mark` where a name is, or ends in a dot and, that."""
    found = {name.removesuffix(mark) for name in source if name.endswith(mark)}
    return sorted(prefix for prefix in found if prefix == "" or prefix.endswith("."))


def _translated(
    names: Mapping[str, str], modules: Callable[[Iterable[str]], Mapping[str, str]]
) -> dict[str, str]:
    table = modules(names)
    return {ldm.renamed(name, table): old for name, old in names.items()}


def _unets(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Part]:
    """UNets, ControlNets and SparseCtrl, which are built alike, in diffusers' names or LDM's."""
    for prefix in _prefixes(source, "time_embedding.linear_1.weight"):
        yield _unet_like(source, _below(source, prefix), "diffusers", settings)
    for prefix in _prefixes(source, "input_blocks.0.0.weight"):
        names = _below(source, prefix)
        if "input_hint_block.0.weight" in names:
            names = _translated(names, ldm.controlnet_modules)
        else:
            names = _translated(names, lambda n: ldm.unet_modules(*ldm.unet_counts(n)))
        yield _unet_like(source, names, "a single file's (LDM)", settings)


def _unet_like(
    source: Mapping[str, Any], names: dict[str, str], layout: str, settings: Mapping[str, Any]
) -> Part:
    shapes = _shapes(source, names)
    sparse = any(".motion_modules." in name for name in names)
    if "controlnet_cond_embedding.conv_in.weight" in names and sparse:
        raise InputError(
            "this is SparseCtrl's encoder of scribbles; the one of pictures (RGB) is known here"
        )
    if "controlnet_cond_embedding.conv_in.weight" in names:
        control = structure.controlnet(shapes, settings)
        table: Table = controlnet.rules(control)
        title = f"a ControlNet for {_family(control.unet)}"
        return Part("controlnet", title, layout, _claim(source, names, table), table, control)
    if "controlnet_cond_embedding.weight" in names:
        sparse = structure.sparse_control(shapes, settings)
        table = sparse_control.find(names, sparse)
        title = "a SparseCtrl encoder of pictures"
        return Part("sparse_control", title, layout, _claim(source, names, table), table, sparse)
    cfg = structure.unet(shapes, settings)
    table = unet.rules(cfg)
    return Part("unet", _family(cfg), layout, _claim(source, names, table), table, cfg)


def is_sd2(cfg: UNetConfig) -> bool:
    """Whether a UNet is Stable Diffusion 2's: linear projections, text of OpenCLIP's width."""
    return cfg.pooled_width is None and cfg.linear_projection and cfg.context_width == 1024


def _family(cfg: Any) -> str:
    """A UNet's family, by what its cross-attention reads."""
    if cfg.pooled_width is not None:
        name = "an SDXL UNet" if cfg.context_width == 2048 else "a UNet of SDXL's kind"
    elif cfg.linear_projection:
        name = "an SD2 UNet" if is_sd2(cfg) else "a UNet of SD2's kind"
    else:
        name = "an SD1.5 UNet" if cfg.context_width == 768 else "a UNet of SD1.5's kind"
    return name if cfg.in_channels == 4 else f"{name} of {cfg.in_channels} input channels"


def _vaes(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Part]:
    # Which VAE a bare file is leaves no trace in it; one beside SDXL's UNet is SDXL's.
    beside_sdxl = any(name.endswith("label_emb.0.0.weight") for name in source)
    scaling = SCALING_SDXL if beside_sdxl else SCALING
    table = vae.rules()
    for prefix in _prefixes(source, "encoder.conv_in.weight"):
        names = _below(source, prefix)
        layout = "diffusers"
        if "encoder.mid.block_1.conv1.weight" in names:
            names = _translated(names, ldm.vae_modules)
            layout = "a single file's (LDM)"
        cfg = structure.vae(_shapes(source, names), settings, scaling)
        title = f"a VAE (latents scaled by {cfg.scaling_factor:g})"
        yield Part("vae", title, layout, _claim(source, names, table), table, cfg)


def _texts(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Part]:
    for prefix, table in clip.find_text(source):
        names = _below(source, prefix)
        if "token_embedding.weight" in names:
            layout, cfg = "OpenCLIP's", structure.open_clip_text(_shapes(source, names))
        else:
            inner = "text_model." if any(n.startswith("text_model.") for n in names) else ""
            layout = "transformers'"
            cfg = structure.text(_shapes(source, names), settings, inner)
        title = f"a CLIP text encoder (width {cfg.width}, {cfg.layers} layers)"
        yield Part("text_encoder", title, layout, _claim(source, names, table), table, cfg)


def _visions(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Part]:
    for prefix, table in clip.find_vision(source):
        names = _below(source, prefix)
        if "conv1.weight" in names:
            layout, cfg = "OpenCLIP's", structure.open_clip_vision(_shapes(source, names))
        else:
            inner = "vision_model." if any(n.startswith("vision_model.") for n in names) else ""
            layout = "transformers'"
            cfg = structure.vision(_shapes(source, names), settings, inner)
        title = f"a CLIP vision encoder (width {cfg.width}, {cfg.layers} layers)"
        yield Part("image_encoder", title, layout, _claim(source, names, table), table, cfg)


def _motions(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Part]:
    is_sparse = any(name.endswith("controlnet_cond_embedding.weight") for name in source)
    if is_sparse or not any(".motion_modules." in name for name in source):
        return
    names = {name: name for name in source}
    try:
        table = motion.find(names)
        cfg = structure.motion_modules(_shapes(source, names), settings)
        original = motion.layout(names).original
    except ValueError as error:
        raise InputError(str(error)) from None
    middle = "a" if cfg.mid_block else "no"
    title = f"motion modules ({cfg.max_frames} frames, {middle} middle block)"
    layout = "AnimateDiff's" if original else "diffusers"
    yield Part("motion", title, layout, _claim(source, names, table), table, cfg)


def _adapters(source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Part]:
    if not any(name.startswith("ip_adapter.") for name in source):
        return
    try:
        prefix, inner = ip_adapter.find(source)
    except ValueError as error:
        raise InputError(str(error)) from None
    cfg = structure.image_projection(_shapes(source, _below(source, prefix)))
    names = {name: name for name in source if name.startswith((prefix, "ip_adapter."))}
    plus = "-Plus" if cfg.kind == "resampler" else ""
    title = f"an IP-Adapter{plus} ({cfg.tokens} tokens of width {cfg.out_width})"
    # The attention's half of the table depends on the UNet it will stand in.
    table = under(inner, prefix, "projection/")
    yield Part("image_adapter", title, "IP-Adapter's", View(source, names), table, cfg)


_FINDERS = (_unets, _vaes, _texts, _visions, _motions, _adapters)


def _lora(source: Mapping[str, Any]) -> Part:
    moving = any("motion_modules" in name for name in source)
    kind, title = ("motion_lora", "a Motion-LoRA") if moving else ("lora", "a LoRA")
    return Part(kind, title, "", source, [], None)
