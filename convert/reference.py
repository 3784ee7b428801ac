"""The networks of PyTorch's libraries, filled from the very sources a cascade was converted from.

Nothing that was read for the conversion is believed here, so that what was misread there is not
misread here too. A folder's config.json is read by the library that wrote it; single files go
through diffusers' own converters (it has none for OpenCLIP's vision transformer), and what they do
not say is stated anew (`_UNSAID`), from the publishers' own configs; LoRAs are merged by
`reference_lora`.
"""

from __future__ import annotations

import re
from typing import Any

import diffusers
import numpy as np
import safetensors.torch
import torch
import transformers
from diffusers.loaders import single_file_utils as single

from mv2_jax import lookup
from mv2_jax.config import ImageProjectionConfig, UNetConfig
from mv2_jax.convert import diffusers_config, kinds, reference_lora
from mv2_jax.convert.checkpoint import SourceNetwork
from mv2_jax.convert.kind import FileNetwork
from mv2_jax.convert.pending import PendingNetwork
from mv2_jax.convert.tables import motion
from mv2_jax.errors import InputError

State = dict[str, torch.Tensor]

diffusers.utils.logging.set_verbosity_error()  # it warns of what does no harm here


def tensor(array: Any) -> torch.Tensor:
    """A torch tensor of an array in any type, bfloat16 bit for bit."""
    if isinstance(array, torch.Tensor):
        return array
    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def state(found: SourceNetwork) -> State:
    """A source's tensors in diffusers' or transformers' names."""
    part = found.part
    convert = kinds.get(part.kind).torch.converters.get(part.layout)
    if convert is None:
        return {_modern(name): tensor(part.tensors[name]) for name in part.tensors}
    own = {part.tensors.origin(name): tensor(part.tensors[name]) for name in part.tensors}
    return lookup.find(convert, {}, "converter")(own, part)


def _modern(name: str) -> str:
    """A VAE's attention had other names in diffusers once."""
    old, new = "query|key|value|proj_attn", {"query": "to_q", "key": "to_k", "value": "to_v"}
    return re.sub(rf"(?<=attentions\.0\.)({old})(?=\.)", lambda m: new.get(m[0], "to_out.0"), name)


def _before(mark: str, own: State) -> str:
    """What stands before a name in a file."""
    return next(name for name in own if name.endswith(mark)).removesuffix(mark)


def ldm_unet(own: State, part: FileNetwork) -> State:
    prefix = _before("input_blocks.0.0.weight", own)
    named = {f"model.diffusion_model.{n.removeprefix(prefix)}": t for n, t in own.items()}
    _, settings = diffusers_config.unet(part.config)
    settings["class_embed_type"] = None
    return single.convert_ldm_unet_checkpoint(named, {"addition_embed_type": None, **settings})


def ldm_controlnet(own: State, part: FileNetwork) -> State:
    prefix = _before("input_blocks.0.0.weight", own)
    named = {n.removeprefix(prefix): t for n, t in own.items()}
    _, settings = diffusers_config.controlnet(part.config)
    return single.convert_controlnet_checkpoint(named, settings)


def control_lora(own: State, part: FileNetwork) -> State:
    """The UNet's tensors with the file's over them; products in torch."""
    lora, made = part.tensors.lora, {}
    for name in part.tensors:
        up, down = (name.removesuffix("weight") + half for half in ("up", "down"))
        made[name] = tensor(lora[name] if name in lora else part.tensors.unet[name])
        if name.endswith(".weight") and up in lora:
            two = [tensor(lora[half]).float().flatten(1) for half in (up, down)]
            change = torch.mm(*two).reshape(made[name].shape)
            made[name] = made[name].float() + change
    return made


def ldm_vae(own: State, part: FileNetwork) -> State:
    prefix = _before("encoder.conv_in.weight", own)
    named = {f"first_stage_model.{n.removeprefix(prefix)}": t for n, t in own.items()}
    return single.convert_ldm_vae_checkpoint(named, diffusers_config.vae(part.config)[1])


def motion_modules(own: State, part: FileNetwork) -> State:
    converted = single.convert_animatediff_checkpoint_to_diffusers(own)
    # It drops the positional encodings and computes them anew; some were trained.
    for name, value in own.items():
        if name.endswith("attention_blocks.0.pos_encoder.pe"):
            module = re.sub(r"\.temporal_transformer|\.attention_blocks\.0\.pos_encoder", "", name)
            converted[module.replace(".pe", ".pos_embed.pe")] = value
    return converted


def hotshot_modules(own: State, part: FileNetwork) -> State:
    converted: State = {}
    for name, value in own.items():
        head, _, tail = name.partition(".temporal_attentions.")
        for old, new in _HOTSHOT.items():
            tail = re.sub(old, new, tail)
        if ".attention_blocks." not in tail:  # the second's positions are the first's
            converted[f"{head}.motion_modules.{tail}"] = value
    return converted


_HOTSHOT = {
    r"\.attention_blocks\.0\.pos_encoder\.positional_encoding$": ".pos_embed.pe",
    r"\.attention_blocks\.(\d)\.(?=to_)": lambda match: f".attn{int(match[1]) + 1}.",
    r"\.norms\.(\d)\.": lambda match: f".norm{int(match[1]) + 1}.",
    r"\.ff_norm\.": ".norm3.",
}


def open_clip_text(own: State, part: FileNetwork) -> State:
    prefix = _before("token_embedding.weight", own)
    config = transformers.CLIPTextConfig(**diffusers_config.text(part.config)[1])
    return single.convert_open_clip_checkpoint(_Sized(config), own, prefix)


def open_clip_vision(own: State, part: FileNetwork) -> State:
    prefix = _before("conv1.weight", own)
    converted: State = {}
    for name, value in own.items():
        name = name.removeprefix(prefix)
        fused = re.fullmatch(r"(transformer\.resblocks\.\d+\.attn)\.in_proj_(weight|bias)", name)
        if fused:
            for letter, third in zip("qkv", value.chunk(3)):
                converted[f"{fused[1]}.{letter}_proj.{fused[2]}"] = third
        else:
            converted[name] = value.T if name == "proj" else value
    for old, new in _OPEN_CLIP_VISION.items():
        converted = {re.sub(old, new, name): value for name, value in converted.items()}
    return converted


_OPEN_CLIP_VISION = {
    r"^conv1\.": "embeddings.patch_embedding.",
    r"^class_embedding$": "embeddings.class_embedding",
    r"^positional_embedding$": "embeddings.position_embedding.weight",
    r"^proj$": "visual_projection.weight",
    r"^ln_pre\.": "pre_layrnorm.",
    r"^ln_post\.": "post_layernorm.",
    r"^transformer\.resblocks\.": "encoder.layers.",
    r"\.attn\.": ".self_attn.",
    r"\.ln_(\d)\.": r".layer_norm\1.",
    r"\.mlp\.c_fc\.": ".mlp.fc1.",
    r"\.mlp\.c_proj\.": ".mlp.fc2.",
}


class _Sized:
    """All that diffusers' converter asks of a text model."""

    def __init__(self, config: Any):
        self.config = config


def sparse_control(own: State, part: FileNetwork) -> State:
    # The same names as the modules', whose converter leaves the others as they are.
    named = {name: tensor(part.tensors[name]) for name in part.tensors}
    return motion_modules(named, part) if motion.layout(named).original else named


def module(network: PendingNetwork, dtype: torch.dtype, unet: UNetConfig) -> torch.nn.Module:
    """The network of a network in PyTorch, LoRAs and all, computing in fp32.

    Args:
        network: any but an IP-Adapter, see `with_adapter`. Of its config only what shapes force
            counts; the rest is read anew.
        dtype: the type that the weights are stored in here; they are rounded to it.
        unet: the UNet that motion modules stand in.

    Raises:
        InputError: the source is gone, or lacks tensors of that network.
    """
    made = _empty(network, unet)
    weights = {_bare(name): value for name, value in state(network.found).items()}
    own = made.state_dict()
    for name, value in own.items():
        if name.endswith("pos_embed.pe"):  # a plain sinusoid where the file has none
            weights.setdefault(name, value)
    absent = [name for name in own if _bare(name) not in weights]
    if absent:
        raise InputError(f"{network.found.path}: PyTorch's network also wants {absent[0]}")
    whole = {name: weights[_bare(name)].float().reshape(own[name].shape) for name in own}
    for path, weight in network.loras:
        reference_lora.merge(
            whole, path, weight, kinds.get(network.found.part.kind).torch.prefixes(network.config)
        )
    if network.rows:
        _enlarge(made, whole, network)
    made.load_state_dict({name: value.to(dtype).float() for name, value in whole.items()})
    return made.eval()


def _enlarge(made: torch.nn.Module, whole: State, network: PendingNetwork) -> None:
    """Puts embeddings below a text encoder's table, as diffusers' `load_textual_inversion` does."""
    name = next(name for name in whole if name.endswith("token_embedding.weight"))
    end = len(whole[name]) - 1
    whole[name] = torch.cat([whole[name], *(tensor(rows.vectors) for rows in network.rows)])
    made.set_input_embeddings(torch.nn.Embedding(*whole[name].shape))
    for inner in made.modules():
        # 2 stands for the largest id, which is an embedding's now.
        if getattr(inner, "eos_token_id", None) == 2:
            inner.eos_token_id = end


def vectors(path: str, name: str, width: int) -> np.ndarray:
    """An embedding's rows [n, width], read anew: of several in a file the one of this name."""
    if path.endswith((".safetensors", ".sft")):
        held: Any = safetensors.torch.load_file(path)
    else:
        held = torch.load(path, map_location="cpu", weights_only=True)
    held = held.get("string_to_param", held)
    found = [
        value
        for key, value in held.items()
        if hasattr(value, "shape") and value.shape[-1] == width and (len(held) < 2 or key == name)
    ] or [value for value in held.values() if getattr(value, "shape", (0,))[-1] == width]
    if not found:
        raise InputError(f"{path} no longer holds {name}")
    return found[0].detach().float().reshape(-1, width).numpy()


def _empty(network: PendingNetwork, unet: UNetConfig) -> torch.nn.Module:
    """The network with the settings that the source's own library reads, or its publisher's."""
    found, cfg = network.found, network.config
    theirs, own = kinds.get(found.part.kind).torch, dict(found.settings)
    name, settings = theirs.published(cfg, unet)
    settings = {**settings, **theirs.unsaid(cfg)}
    if theirs.config:
        said = {**own, **own.get(theirs.half, {})} if own else settings
        return getattr(transformers, name)(getattr(transformers, theirs.config)(**said))
    cls = getattr(diffusers, name)
    if own.get("_class_name") == "UNetMotionModel":
        own = _half(own, name)
    elif own.get("_class_name") == "UNet3DConditionModel":  # Hotshot-XL's, with its layers in it
        own = {} if name == "MotionAdapter" else _flat(own)
    if own:
        return cls.from_config({k: v for k, v in own.items() if not k.startswith("_")})
    return cls(**settings)


def _half(own: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings of a UNetMotionModel that are its UNet's, or its motion modules'."""
    if name == "MotionAdapter":
        made = {key: own[key] for key in ("block_out_channels", "use_motion_mid_block")}
        made |= {key: own[key] for key in own if key.startswith("motion_")}
        made["motion_layers_per_block"] = own["layers_per_block"]
        made["motion_norm_num_groups"] = own["norm_num_groups"]
        return made
    made = {**own, "attention_head_dim": own["num_attention_heads"]}
    del made["num_attention_heads"]  # the name that UNet2DConditionModel has for it
    for side in ("down_block_types", "up_block_types"):
        made[side] = [block.replace("Motion", "2D") for block in own[side]]
    return made


def _flat(own: dict[str, Any]) -> dict[str, Any]:
    """The settings of Hotshot-XL's UNet as those of the UNet2DConditionModel that it is without
    its temporal layers."""
    sides = ("down_block_types", "up_block_types")
    return own | {side: [block.replace("3D", "2D") for block in own[side]] for side in sides}


def with_adapter(unet: torch.nn.Module, network: PendingNetwork, dtype: torch.dtype) -> None:
    """Puts an IP-Adapter of its own files' layout into diffusers' UNet.

    Raises:
        InputError: a Plus adapter of another depth than the published, the one that diffusers has.
    """
    if network.config.kind == "resampler" and network.config.depth != ImageProjectionConfig.depth:
        raise InputError(f"diffusers has no IP-Adapter-Plus of {network.config.depth} layers")
    halves: dict[str, State] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in state(network.found).items():
        half, _, rest = name.partition(".")
        halves[half][rest] = value.to(dtype).float()
    unet._load_ip_adapter_weights([halves], low_cpu_mem_usage=False)
    unet.eval()


def _bare(name: str) -> str:
    """A name without what stands before a CLIP tower's own names."""
    return re.sub(r"^.*\b(text_model|vision_model)\.", "", name)


def norm_scopes(network: PendingNetwork) -> tuple[str, str]:
    """Over what AnimateDiff's own code normalises: in its modules, and in the UNet's resnets.

    Its code for SDXL (three levels) takes whole clips in the modules; its v1 (24 positions) took
    them in the resnets (`use_inflated_groupnorm` came with v2). Hotshot-XL's takes each frame.
    """
    if is_hotshot(network):
        return "frame", "frame"
    own = state(network.found)
    levels = {name.split(".")[1] for name in own if name.startswith("down_blocks.")}
    lengths = {value.shape[-2] for name, value in own.items() if name.endswith(".pe")}
    return (
        "clip" if len(levels) == 3 else "frame",
        "clip" if len(levels) == 4 and lengths == {24} else "frame",
    )


def is_hotshot(network: PendingNetwork) -> bool:
    """Whether motion modules are Hotshot-XL's, by their names in the file."""
    tensors = network.found.part.tensors
    return any(".temporal_attentions." in tensors.origin(name) for name in tensors)


class EachFrame(torch.nn.Module):
    """A GroupNorm over each frame alone, where diffusers normalises a clip's frames together."""

    def __init__(self, norm: torch.nn.GroupNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, C, T, H, W] -> the same."""
        frames = x.transpose(1, 2)
        return self.norm(frames.flatten(0, 1)).reshape(frames.shape).transpose(1, 2)
