"""CLIP's encoders: its text encoders, and its vision encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mv2_jax.config import TextConfig, VisionConfig
from mv2_jax.convert import config_from_shapes, diffusers_config, lora_layers, param_shapes
from mv2_jax.convert.kind import FileNetwork, Kind, Torch, below, claim, same, shapes
from mv2_jax.convert.tables import clip

if TYPE_CHECKING:
    from mv2_jax.convert.compare_networks import Job
    from mv2_jax.convert.pending import PendingNetwork

OPEN_CLIP = "OpenCLIP's"


@dataclass(frozen=True)
class Tower:
    """One half of a CLIP: how it is found in a file's names, and its config read from shapes.

    first: the tensor that OpenCLIP's has and transformers' has not. inner: what stands before
    names in transformers' files of whole models.
    """

    kind: str
    title: str
    found: Callable[[Mapping[str, Any]], list[clip.EncoderNames]]
    first: str
    inner: str
    open_clip: Callable[..., Any]
    transformers: Callable[..., Any]

    def find(self, source: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[FileNetwork]:
        """The encoders of a source."""
        for prefix, table in self.found(source):
            names = below(source, prefix)
            if self.first in names:
                layout, cfg = OPEN_CLIP, self.open_clip(shapes(source, names))
            else:
                inner = self.inner if any(n.startswith(self.inner) for n in names) else ""
                layout, cfg = (
                    "transformers'",
                    self.transformers(shapes(source, names), settings, inner),
                )
            title = f"a CLIP {self.title} (width {cfg.width}, {cfg.layers} layers)"
            yield FileNetwork(self.kind, title, layout, claim(source, names, table), table, cfg)


def text_fits(name: str, network: PendingNetwork, built: Mapping[str, PendingNetwork]) -> None:
    """Whether a text encoder is as wide as the UNet reads; SDXL's two were looked at together."""
    unet = built["spatial"].config
    if name == "text_encoder" and unet.pooled_width is None:
        same(network, network.config.width, unet.context_width, "wide", "the UNet")


def _text_unsaid(cfg: TextConfig) -> dict[str, Any]:
    # OpenAI's ViT-L/14, the one of this width, and OpenCLIP's larger ones.
    act = "quick_gelu" if cfg.width == 768 else "gelu"
    common = {"num_attention_heads": cfg.width // 64 or 1, "eos_token_id": cfg.vocab_size - 1}
    return {**common, "hidden_act": act, "layer_norm_eps": 1e-5}


def _vision_unsaid(cfg: VisionConfig) -> dict[str, Any]:
    heads = {768: 12, 1024: 16, 1280: 16, 1664: 16}.get(cfg.width, cfg.heads)
    act = "quick_gelu" if cfg.width <= 1024 else "gelu"
    return {"num_attention_heads": heads, "hidden_act": act, "layer_norm_eps": 1e-5}


def _text_expected(job: Job) -> dict[str, Any]:
    said = job.network.found.settings.get("text_config", job.network.found.settings)
    # transformers takes 2 for the last id in the order of the vocabulary, which CLIP's is. An
    # output barely shows the other.
    last = job.network.config.vocab_size - 1
    end = said.get("eos_token_id", last)
    return {
        "eos_token_id": last if job.network.rows and end == 2 else end,
        "layer_norm_eps": said.get("layer_norm_eps", 1e-5),
    }


def _vision_expected(job: Job) -> dict[str, Any]:
    said = job.network.found.settings.get("vision_config", job.network.found.settings)
    return {"layer_norm_eps": said.get("layer_norm_eps", 1e-5)}


def _text_prefixes(cfg: TextConfig) -> tuple[str, ...]:
    if cfg.projection:
        return "lora_te2_", "text_encoder_2."
    return "lora_te_", "lora_te1_", "text_encoder."


TEXT = Kind(
    title="a text encoder",
    serves="--text-encoder",
    find=Tower(
        "text_encoder",
        "text encoder",
        clip.find_text,
        "token_embedding.weight",
        "text_model.",
        config_from_shapes.open_clip_text,
        config_from_shapes.text,
    ).find,
    config=TextConfig,
    target=param_shapes.text,
    layout=lambda bundle, cfg: diffusers_config.transformers(
        clip.transformers_text("text_model."), diffusers_config.text(cfg), "clip_text_model"
    ),
    fits=text_fits,
    layers=lambda cfg, target: lora_layers.Layers.of_text(target),
    torch=Torch(
        compare="mv2_jax.convert.compare_networks:text",
        published=lambda cfg, unet: diffusers_config.text(cfg),
        unsaid=_text_unsaid,
        converters={OPEN_CLIP: "mv2_jax.convert.reference:open_clip_text"},
        config="CLIPTextConfig",
        half="text_config",
        expected=_text_expected,
        prefixes=_text_prefixes,
    ),
)
VISION = Kind(
    title="an image encoder",
    serves="--image-encoder",
    find=Tower(
        "image_encoder",
        "vision encoder",
        clip.find_vision,
        "conv1.weight",
        "vision_model.",
        config_from_shapes.open_clip_vision,
        config_from_shapes.vision,
    ).find,
    config=VisionConfig,
    target=param_shapes.vision,
    layout=lambda bundle, cfg: diffusers_config.transformers(
        clip.transformers_vision("vision_model."), diffusers_config.vision(cfg), "clip_vision_model"
    ),
    torch=Torch(
        compare="mv2_jax.convert.compare_networks:vision",
        published=lambda cfg, unet: diffusers_config.vision(cfg),
        unsaid=_vision_unsaid,
        converters={OPEN_CLIP: "mv2_jax.convert.reference:open_clip_vision"},
        config="CLIPVisionConfig",
        half="vision_config",
        expected=_vision_expected,
    ),
)
