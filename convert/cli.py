"""`mv2 convert`: public checkpoints in, a cascade folder out."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from mv2_jax import bundle, files, startup
from mv2_jax.arguments import Parser
from mv2_jax.configs.few_steps import FEW_STEPS, PICTURE_STEPS
from mv2_jax.configs.presets import PRESETS
from mv2_jax.errors import InputError
from mv2_jax.numbers import DIFFUSION

TYPES = ("float16", "bfloat16", "float32", "keep")
_SOURCES = {
    "unet": "an SD1.5 or SDXL UNet, or a whole checkpoint or pipeline with one",
    "vae": "a VAE to use in place of the checkpoint's",
    "text-encoder": "a text encoder to use in place of the checkpoint's (for SDXL, both)",
    "motion": "AnimateDiff motion modules",
    "motion-v2v": "motion modules for V2V (those of --motion)",
    "image-adapter": "an IP-Adapter for that UNet, plain or Plus",
    "image-encoder": "its CLIP vision encoder",
    "controlnet": "a ControlNet for it (tile suits best), or SparseCtrl's encoder of "
    "pictures; may be repeated",
    "t2i": "SDXL, or another whole checkpoint, for T2I only",
    "t2i-vae": "a VAE to use in place of that checkpoint's",
    "t2i-text-encoder": "text encoders to use in place of that checkpoint's (required for a UNet "
    "alone)",
    "vfi": "an interpolator to use in place of the shipped RIFE",
}


_SEVERAL = {"controlnet": {"action": "append"}}


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 convert`; returns the exit code.

    Raises:
        InputError: an unknown flag, or a source that cannot be used; nothing is written then.
        OSError: the folder cannot be written.
    """
    args = _parser().parse_args(list(arguments))
    startup.loading()
    with needs("torch", "transformers"):
        from mv2_jax.convert import kinds

        with kinds.beside(args.kind):
            return _run(args)


def _run(args: argparse.Namespace) -> int:
    if args.file or not args.unet:
        return _alone(args)
    if not args.out:
        raise InputError("mv2 convert wants -o DIR, the folder to make (see mv2 convert --help)")
    # Said before gigabytes are read.
    files.occupied(Path(args.out), bundle.INDEX, args.replace)
    sizes = {stage: getattr(args, f"{stage}_size") for stage in DIFFUSION}
    with needs("torch", "transformers"):
        from mv2_jax.convert import assemble, schedules

        built = assemble.assemble(
            assemble.Wanted(
                **{
                    name.replace("-", "_"): getattr(args, name.replace("-", "_"))
                    for name in _SOURCES
                },
                lora=tuple(args.lora),
                motion_lora=tuple(args.motion_lora),
                embedding=tuple(args.embedding),
                variant=args.variant,
                norm_scope=args.norm_scope,
                preset=args.preset,
                frames=args.frames,
                sizes={stage: size for stage, size in sizes.items() if size},
                few_steps=args.few_steps,
                t2i_few_steps=args.t2i_few_steps,
                ignore=tuple(args.ignore),
                kinds=tuple(args.kind),
                sampled=schedules.Override(args.schedule, args.prediction),
                t2i_sampled=schedules.Override(args.t2i_schedule, args.t2i_prediction),
            )
        )
        for name, network in built.networks.items():
            print(f"{name:<18} {_line(network)}", flush=True)
        dtype = None if args.dtype == "keep" else _dtype(args.dtype)
        out = Path(args.out)
        name = args.name or out.name
        made = assemble.write(built, out, dtype=dtype, name=name, replace=args.replace)
    size = sum(made.folder.joinpath(f).stat().st_size for f in _files(made))
    print(f"{out}: {len(made.components)} components, {size / 1e9:.2f} GB")
    _say_sampling(built)
    for each in built.tokenizer.embeddings:
        where = f" goes into {', '.join(each.stages)} alone" if each.stages else ""
        print(f"embedding: {each.name}{where}, in place of {each.vectors} tokens")
    for hint in _hints(built):
        print(hint)
    if built.missing:
        how = f" ({built.advice})" if built.advice else ""
        print(f"mv2 generate will want more: {', '.join(built.missing)}{how}")
    return 0


def _alone(args: argparse.Namespace) -> int:
    """What a file is; of an interpolator, with -o, the file that `--vfi` takes."""
    others = [f"--{name}" for name in _SOURCES if getattr(args, name.replace("-", "_"))]
    if not args.file:
        wants = "--unet SOURCE and -o DIR, or a FILE alone"
        raise InputError(f"mv2 convert wants {wants} (see mv2 convert --help)")
    if others:
        raise InputError(f"{args.file} stands alone, without {others[0]}; say what it is to be")
    with needs("torch", "transformers"):
        from mv2_jax.convert import describe, vfi

        if args.out:
            how = {"any_time": args.any_time, "dtype": args.dtype, "own": args.interpolator}
            print(vfi.write(args.file, Path(args.out), **how))
            return 0
        for line in describe.lines(args.file, args.variant, args.ignore):
            print(line)
    return 0


@contextlib.contextmanager
def needs(*modules: str) -> Iterator[None]:
    """Says how to install these where one of them turns out to be absent."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in modules:
            raise
        raise InputError(f"this needs {error.name}: pip install 'mv2-jax[convert]'") from None


def placed(text: str) -> tuple[str, float, tuple[str, ...]]:
    """("file", 0.8, ("i2v", "v2v")) of "file:0.8@i2v,v2v"; without them the weight is 1, and the
    stages are none, which means all."""
    whole, stages = _staged(text)
    return *weighted(whole), stages


def _staged(text: str) -> tuple[str, tuple[str, ...]]:
    """("file", ("i2v", "v2v")) of "file@i2v,v2v"."""
    whole, at, stages = text.rpartition("@")
    if at and re.fullmatch(r"\w+(,\w+)*", stages):
        return whole, tuple(dict.fromkeys(stages.split(",")))
    return text, ()


def called(text: str) -> tuple[str, str | None, tuple[str, ...]]:
    """("file.pt", "name", ("t2i",)) of "file.pt:name@t2i", or None and () for what is not said."""
    file, stages = _staged(text)
    path, colon, name = file.rpartition(":")
    # Not the colon of a drive.
    return (path, name, stages) if colon and len(path) > 1 else (file, None, stages)


def weighted(text: str) -> tuple[str, float]:
    """("file", 0.8) of "file:0.8"; the weight is 1 where none is given."""
    path, colon, number = text.rpartition(":")
    if colon:
        with contextlib.suppress(ValueError):
            if not math.isfinite(float(number)):
                raise argparse.ArgumentTypeError(f"{text}: the weight is no finite number")
            return path, float(number)
    return text, 1.0


def size(text: str) -> tuple[int, int]:
    """(height, width) of "WIDTHxHEIGHT"."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"takes WIDTHxHEIGHT, such as 512x512, not {text!r}")
    return int(height), int(width)


def _line(network: object) -> str:
    from mv2_jax.params import count

    part, loras = network.found.part, network.loras
    layout = f", in {part.layout} names" if part.layout else ""
    merged = "".join(f", with {weight:g} x {Path(path).name}" for path, weight in loras)
    return f"{part.title}{layout}, {count(network.target) / 1e6:.1f} M numbers{merged}"


# The LoRAs of the spatial weights that motion modules were trained beside, as their cards have it.
_BESIDE = {
    "lcm": ("AnimateLCM", "AnimateLCM_sd15_t2v_lora.safetensors:0.8"),
    "v3": ("AnimateDiff v3", "v3_sd15_adapter.ckpt:1"),
}


def _distilled(built: object, stage: str, programs: Collection[str]) -> Iterator[str]:
    """LoRAs that are called as the few-step ones of their publishers, in a stage of many steps."""
    if stage not in built.stages or built.stages[stage].steps < 10:
        return
    unet = built.networks.get(
        "t2i_unet" if stage == "t2i" else "spatial", built.networks["spatial"]
    )
    flag = "--t2i-few-steps" if stage == "t2i" else "--few-steps"
    for path, _ in unet.loras:
        named = [word for word in programs if word in Path(path).name.lower()]
        if named:
            file = Path(path).name
            yield f"{file} is called a few-step LoRA: {flag} {named[0]} samples {stage} so"


def _hints(built: object) -> Iterator[str]:
    """What a user may not know of the parts that were put together."""
    for stage, program in ("t2i", PICTURE_STEPS), ("i2v", FEW_STEPS):
        yield from _distilled(built, stage, program)
    yield from dict.fromkeys(note for network in built.networks.values() for note in network.notes)
    control = built.networks.get("control")
    if control is not None and "shuffle" in control.found.path.name and not control.found.settings:
        yield (
            "shuffling ControlNets are published with pooled residuals, which their single files "
            "do not say; convert the folder that has a config.json"
        )
    moving = built.stages.get("i2v")
    if moving is None:
        return
    if moving.sampler not in {few.sampler for few in FEW_STEPS.values()}:
        yield (
            f"its motion modules are sampled in {moving.steps} steps; if they are distilled "
            "(Lightning, AnimateLCM as diffusers has it), say --few-steps"
        )
    spatial, modules = built.networks["spatial"], moving.unet.motion
    if spatial.loras:
        if "t2i_unet" not in built.networks:
            yield "its LoRAs change T2I's pictures too; --lora FILE:W@i2v,v2v keeps them out"
        return
    # v3 has v2's positions, v1's lack of a middle block, and SD1.5's four levels.
    v3 = modules.max_frames == 32 and not modules.mid_block and len(moving.unet.channels) == 4
    known = "lcm" if moving.sampler == "lcm" else "v3" if v3 else None
    if known:
        name, file = _BESIDE[known]
        yield f"{name} is published with a LoRA for its frames: --lora {file}@i2v,v2v"


def _say_sampling(built: object) -> None:
    """A line on how each stage is sampled."""
    from mv2_jax.convert import schedules

    for name, stage in built.stages.items():
        source = f" ({built.still.source})" if name == "t2i" else ""
        guidance = built.defaults[name]["guidance"]
        print(
            f"{name}: {schedules.words(stage.schedule)}; {stage.sampler}, {stage.steps} steps, "
            f"guidance {guidance:g}{source}"
        )


def _files(made: object) -> set[str]:
    return {component.file for component in made.components.values()}


def _dtype(name: str) -> object:
    import ml_dtypes
    import numpy as np

    return np.dtype(getattr(ml_dtypes, name, None) or name)


def _parser() -> Parser:
    parser = Parser(
        prog="mv2 convert",
        description="Assembles a cascade folder from public PyTorch checkpoints: files, folders as "
        "diffusers and transformers save them, or ids of the model hub. Each is recognised by its "
        "contents; if one does not fit it is refused, and nothing is written.",
    )
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE", help="alone: say what it is and how it can be used; of "
        "an interpolator, with -o FILE.safetensors: write the file that --vfi takes")  # fmt: skip
    for name, what in _SOURCES.items():
        add(f"--{name}", metavar="SOURCE", help=what, **_SEVERAL.get(name, {}))
    repeat = {"action": "append", "default": [], "metavar": "SOURCE[:W][@STAGES]", "type": placed}
    add("--lora", **repeat, help="merge a LoRA with weight W (1) into all stages, or those named "
        "(@t2i; @i2v,v2v, which share their spatial weights); may be repeated")  # fmt: skip
    add("--motion-lora", help="merge a Motion-LoRA in the same way", **repeat)
    add("--embedding", action="append", default=[], metavar="SOURCE[:NAME][@STAGES]", type=called,
        help="a textual inversion embedding, which prompts call NAME (the file's name); may be "
        "repeated")  # fmt: skip
    add("--ignore", action="append", default=[], metavar="PATTERN", help="ignore tensors whose "
        "names match ('first_stage_model.loss.*') in every source; may be repeated")  # fmt: skip
    add("--kind", action="append", default=[], metavar="module:NAME", help="your own kind of "
        "network that sources may hold; may be repeated")  # fmt: skip
    add("--any-time", action="store_true", help="the EMA-VFI file is one of the _t variants")
    add("--interpolator", metavar="module:NAME", help="your own interpolator, for FILE alone")
    add("-o", "--out", metavar="DIR", help="the cascade folder to make")
    add("--name", help="the cascade's name (the folder's)")
    add("--replace", action="store_true", help="replace an existing cascade folder")
    add(
        "--dtype", choices=TYPES, default=TYPES[0], help="stored type (float16); keep: the source's"
    )
    add("--variant", metavar="NAME", help="variant of folders that hold several, such as fp16")
    add("--preset", choices=tuple(PRESETS), help="sizes and frames of the stages (the one that "
        "fits: sd15; paper with SDXL for T2I; sdxl with SDXL for all)")  # fmt: skip
    add("--frames", type=int, metavar="N", help="number of keyframes (the preset's; 1 or more)")
    for stage in DIFFUSION:
        add(
            f"--{stage}-size",
            type=size,
            metavar="WxH",
            help=f"frame size of {stage.upper()} (the preset's)",
        )
    add("--norm-scope", choices=("frame", "clip"), help="group norms of the motion modules: over "
        "a frame (the original code) or the clip (diffusers); as recognised")  # fmt: skip
    add("--few-steps", choices=tuple(FEW_STEPS), help="the motion modules are distilled: "
        "AnimateDiff-Lightning, or AnimateLCM (whose own file is recognised)")  # fmt: skip
    predictions, kinds = ("eps", "v", "x0"), ("sd", "ztsnr", "cosxl", "edm", "flow", "sd3")
    for of, whose in (("", "the UNet's checkpoint"), ("t2i-", "the checkpoint of --t2i")):
        add(f"--{of}prediction", choices=predictions, help=f"what {whose} predicts, if its files "
            "do not say so or are wrong")  # fmt: skip
        add(f"--{of}schedule", choices=kinds, help=f"the noise schedule of {whose}: Stable "
            "Diffusion's, the same with zero terminal SNR, or another process")  # fmt: skip
    add("--t2i-few-steps", choices=(*PICTURE_STEPS, "none"), help="how T2I's network is "
        "distilled (as its scheduler, LoRA or file's name says)")  # fmt: skip
    return parser
