"""`mv2 rehearse`: a preset's cascade run at its full widths with random weights.

What it makes means nothing; that every stage runs, in how much memory and how long, is the answer.
Stages run one after another, each with its own weights, so that the largest one sets the memory.
Planes and steps may be reduced: a plane that is odd stays odd.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mv2_jax import numbers as sets
from mv2_jax import startup
from mv2_jax.arguments import Parser, whole
from mv2_jax.configs import presets
from mv2_jax.infer import meshes

if TYPE_CHECKING:
    import jax

    from mv2_jax.cascade import Cascade

STAGES = tuple(sets.STAGES)
PROMPT = "a lighthouse in a storm, oil painting"
_TYPES = ("bfloat16", "float16", "float32")


@dataclass
class Report:
    """One stage: millions of parameters, seconds of compiling and of all the rest, peak bytes.

    `made` is the shape of what came out. The peak is the process's (or device's) since it began.
    """

    stage: str
    parameters: float
    made: tuple[int, ...] = ()
    compiling: float = 0.0
    running: float = 0.0
    peak: int = 0
    _began: dict[str, float] = field(default_factory=dict, repr=False)

    def progress(self, label: str, done: int, total: int) -> None:
        """A stage's progress callback, which times what is compiled."""
        if label.startswith("compiling"):
            now = time.monotonic()
            if done == 0:
                self._began[label] = now
            else:
                self.compiling += now - self._began.pop(label)


def main(arguments: Sequence[str]) -> int:
    """Runs `mv2 rehearse`; returns the exit code.

    Raises:
        InputError: an unknown flag, or a number that cannot be.
    """
    args = _parser().parse_args(list(arguments))
    chosen = args.only or STAGES
    preset = reduced(presets.PRESETS[args.preset], args.shrink, args.frames)
    startup.loading()
    meshes.say(hint=False)
    print(f"{args.preset}, {args.dtype}, planes 1/{args.shrink}, {args.steps} steps", flush=True)
    print(f"{'stage':<6}{'M params':>10}{'compile s':>11}{'run s':>9}{'peak GiB':>10}  made")
    for report in rehearse(preset, chosen, args.steps, args.dtype):
        print(
            f"{report.stage:<6}{report.parameters:>10.1f}{report.compiling:>11.1f}"
            f"{report.running:>9.1f}{report.peak / 2**30:>10.2f}  "
            + "x".join(map(str, report.made)),
            flush=True,
        )
    return 0


def reduced(preset: Any, shrink: int, frames: int | None = None) -> Any:
    """The preset with planes of 1 / `shrink` along each side, and fewer frames where asked."""
    import dataclasses
    from types import SimpleNamespace

    made = SimpleNamespace(
        **{name: getattr(preset, name) for name in dir(preset) if name.isupper()}
    )
    for name, factor in (
        ("T2I", preset.PICTURE_VAE.factor),
        ("I2V", preset.VAE.factor),
        ("V2V", preset.VAE.factor),
    ):
        stage = getattr(preset, name)
        size = tuple(_cells(side // factor, shrink) * factor for side in stage.size)
        count = stage.frames if frames is None or name == "T2I" else frames
        setattr(made, name, dataclasses.replace(stage, size=size, frames=count))
    return made


def _cells(cells: int, shrink: int) -> int:
    """Cells along a side, a `shrink`th of them; an odd number stays odd."""
    fewer = max(2, cells // shrink)
    return fewer | 1 if cells % 2 else fewer


def rehearse(preset: Any, stages: Sequence[str], steps: int, dtype: str) -> Iterator[Report]:
    """Runs the stages of a preset in their order and reports each as it is done.

    A stage whose forerunner is left out begins from noise of the right shape.
    """
    import jax
    import numpy as np

    from mv2_jax import params as trees
    from mv2_jax.diffusion import keys

    rng, key = np.random.default_rng(0), keys.seeds([0])
    given = {name: _noise(rng, shape) for name, shape in _shapes(preset).items()}
    for stage in [stage for stage in STAGES if stage in stages]:
        tree = random_params(shapes(preset, stage), dtype)
        report = Report(stage, trees.count(tree) / 1e6)
        four = build(preset, tree, dtype)
        numbers = {} if stage == "vfi" else {"keys": key, "steps": steps}
        if stage == "v2v":
            numbers["strength"] = 1.0
        began = time.monotonic()
        out = run(four, preset, stage, given, progress=report.progress, **numbers)
        given[stage] = np.asarray(jax.block_until_ready(out))
        report.running = time.monotonic() - began - report.compiling
        report.made, report.peak = given[stage].shape, peak()
        if not np.isfinite(given[stage]).all():
            raise RuntimeError(f"{stage} made numbers that are not finite")
        del tree, four, out
        yield report


def run(
    four: Cascade, preset: Any, stage: str, given: Mapping[str, Any], **numbers: Any
) -> jax.Array:
    """One stage of a cascade that `build` made: what it makes, as pixels.

    Args:
        given: what the stages before it made, by their names.
        numbers: of the stage's method, its keys and progress among them.
    """
    if stage == "t2i":
        return four.t2i([PROMPT], **numbers)
    if stage == "i2v":
        return four.i2v([PROMPT], given["t2i"], **numbers)
    if stage == "v2v":
        return four.v2v([PROMPT], given["t2i"], given["i2v"], **numbers)
    return four.vfi(given["v2v"], int(preset.DEFAULTS["vfi"]["between"]) + 1, **numbers)


def build(preset: Any, params: dict[str, Any], dtype: Any) -> Cascade:
    """A cascade of the preset's networks that holds `params`, which may be of some stages only."""
    import jax.numpy as jnp

    from mv2_jax.cascade import Cascade
    from mv2_jax.stages import stage as stages
    from mv2_jax.text import CLIPTokenizer

    networks = {
        "text_encoder": preset.TEXT,
        "text_encoder_2": preset.TEXT_2,
        "image_encoder": preset.VISION,
        "image_attn": preset.PROJECTION,
        "control": preset.CONTROL,
    }

    def made(name: str, vae: Any) -> stages.Config:
        own = getattr(preset, name.upper())
        return stages.build(name, own, networks, vae.factor, jnp.dtype(dtype))

    return Cascade(
        params=params,
        tokenizer=CLIPTokenizer(max_length=preset.TEXT.max_length),
        vae=preset.VAE,
        interpolator=preset.RIFE,
        picture=made("t2i", preset.PICTURE_VAE),
        keyframes=made("i2v", preset.VAE),
        refined=made("v2v", preset.VAE),
        dtype=jnp.dtype(dtype),
        picture_vae=preset.PICTURE_VAE,
        numbers=sets.read(preset.DEFAULTS, "the preset"),
    )


def shapes(preset: Any, stage: str) -> dict[str, Any]:
    """The abstract trees of the components that a stage takes, named as in `Cascade.params`."""
    import jax
    import jax.numpy as jnp

    from mv2_jax.diffusion import keys as named
    from mv2_jax.models.rife import RIFE
    from mv2_jax.models.vae import AutoencoderKL
    from mv2_jax.stages import stage as stages

    four, key = build(preset, {}, "float32"), named.seed(0)
    if stage == "vfi":
        side = preset.RIFE.pad_to
        frame = jnp.zeros((1, side, side, 3))
        tree = jax.eval_shape(RIFE(preset.RIFE).init, key, frame, frame, jnp.zeros((1, 1)))
        return {"interpolator": tree["params"]}
    cfg = preset.PICTURE_VAE if stage == "t2i" else preset.VAE
    pixels = jnp.zeros((1, cfg.factor * 2, cfg.factor * 2, cfg.in_channels))
    vae = jax.eval_shape(AutoencoderKL(cfg).init, key, pixels)["params"]
    tree = jax.eval_shape(lambda key: stages.init(four.stage(stage), key), key)
    if stage == "t2i":
        names = {"spatial": "t2i_unet"}
        own = {names.get(name, f"t2i_{name}"): tree for name, tree in tree.items()}
        return {**own, "t2i_vae": vae}
    motion = tree.pop("motion")
    return {**tree, f"motion_{stage}": motion, "vae": vae}


def random_params(tree: Any, dtype: Any) -> Any:
    """Parameters of these shapes: kernels that keep a signal's scale, norms at their start."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng, dtype = np.random.default_rng(1), jnp.dtype(dtype)

    def leaf(path: Any, shape: Any) -> Any:
        name = path[-1].key
        if name == "scale":
            made = np.ones(shape.shape, np.float32)
        elif name in ("bias", "beta"):
            made = np.zeros(shape.shape, np.float32)
        else:
            fan_in = int(np.prod(shape.shape[:-1])) if name == "kernel" else 2500
            made = rng.standard_normal(shape.shape, np.float32) / np.float32(fan_in**0.5)
        return jax.device_put(made.astype(dtype))

    return jax.tree_util.tree_map_with_path(leaf, tree)


def peak() -> int:
    """The most bytes that were in use: of the device where it says so, else of this process."""
    import resource
    import sys

    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _shapes(preset: Any) -> dict[str, tuple[int, ...]]:
    """What T2I, I2V and V2V make, as pixels."""
    made = {"t2i": (1, *preset.T2I.size, 3)}
    for name, stage in (("i2v", preset.I2V), ("v2v", preset.V2V)):
        made[name] = (1, stage.frames, *stage.size, 3)
    return made


def _noise(rng: Any, shape: tuple[int, ...]) -> Any:
    return rng.uniform(-1, 1, shape).astype("float32")


def _parser() -> Parser:
    parser = Parser(
        prog="mv2 rehearse",
        description="Runs a preset's cascade at full width with random weights, stage by stage, "
        "and reports memory (the most so far) and time. In bfloat16 the paper's T2I, SDXL, "
        "takes 7 GiB of weights, its other stages 5; on a CPU, XLA adds copies in float32.",
    )
    add = parser.add_argument
    add("preset", choices=list(presets.PRESETS), help="which cascade")
    add(
        "--shrink",
        type=whole(1, 1024),
        default=8,
        metavar="N",
        help="divide the sides of pictures by N (8; 1 to 1024)",
    )
    add(
        "--frames",
        type=whole(1, 1024),
        metavar="N",
        help="number of keyframes (the preset's; 1 to 1024)",
    )
    add(
        "--steps",
        type=whole(1, 1024),
        default=2,
        metavar="N",
        help="denoising steps of a stage (2; 1 to 1024)",
    )
    add(
        "--dtype",
        choices=_TYPES,
        default=_TYPES[0],
        help="type of parameters and computation (bfloat16)",
    )
    add("--only", nargs="+", choices=STAGES, metavar="STAGE", help="run only these stages")
    return parser
