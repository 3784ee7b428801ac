"""What whole guided chains of video beside diffusers' pipelines have in common.

Small networks with random weights, saved by their libraries and converted here; both sides get the
same noise, pictures and token ids. Its fixtures are imported where they are used.
"""

from __future__ import annotations

import copy
import functools
import re

import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick
from torch_chains import show_pictures

from mv2_jax import cascade
from mv2_jax.convert import assemble
from mv2_jax.diffusion import guidance, keys
from mv2_jax.models import clip_vision
from mv2_jax.stages import chain, stage

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SIZE, FRAMES, STEPS, GUIDANCE = (40, 56), 4, 25, 7.5  # planes of 5 x 7, then 3 x 4
PROMPTS, NEGATIVE = ["a lighthouse in a storm", "two cats, oil painting"], "blurry"
KEYS = keys.seeds([7, 8])
# Measured: at most 3.0e-6 after any step, of that step's largest magnitude.
BOUND = 1e-5


@pytest.fixture(scope="module")
def public(small, tmp_path_factory):
    """The torch modules, and the folder where they lie as their publishers would leave them."""
    from safetensors.numpy import save_file

    root = tmp_path_factory.mktemp("public")
    modules = {
        "unet": small.unet(),
        "vae": small.vae(levels=4),
        "text_encoder": small.text(),
        "vision": small.vision(),
        "motion": small.motion(middle=True),
        "controlnet": small.controlnet(hints=(8, 8, 16, 16)),
        "controlnet_2": small.controlnet(seed=16, hints=(8, 8, 16, 16)),
        "sparse": small.sparse(),
    }
    for name, module in modules.items():
        inside = "pipeline/" if name in ("unet", "vae", "text_encoder") else ""
        module.save_pretrained(root / f"{inside}{name}")
    save_file(small.adapter(), root / "adapter.safetensors")
    return modules, small.adapter(), root


@pytest.fixture(scope="module")
def cascades(public, tmp_path_factory):
    """Our cascade by the scope of its motion modules' norms, and by what controls it."""
    root = public[2]

    @functools.cache
    def make(scope, *control):
        wanted = assemble.Wanted(
            unet=str(root / "pipeline"),
            motion=str(root / "motion"),
            image_adapter=str(root / "adapter.safetensors"),
            image_encoder=str(root / "vision"),
            controlnet=[str(root / name) for name in control or ("controlnet",)],
            norm_scope=scope,
            frames=FRAMES,
            sizes=dict.fromkeys(("t2i", "i2v", "v2v"), SIZE),
        )
        folder = tmp_path_factory.mktemp("cascade") / "c"
        return cascade.load(assemble.write(assemble.assemble(wanted), folder, dtype=None, name="c"))

    return make


CONDITION = quick(stage.condition, "cfg", "rule")
ADVANCE = quick(chain.advance, "cfg", "rule", "steps", "k")


def pictures():
    """Reference pictures: uint8 [2, H, W, 3] for torch, and [-1, 1] for ours."""
    raw = np.random.default_rng(3).integers(0, 256, (2, 5, 7, 3))
    raw = raw.repeat(8, 1).repeat(8, 2).astype(np.uint8)
    return raw, raw.astype(np.float32) / 127.5 - 1.0


def ours(four, name, state, image_scale=1.0, control_scale=1.0, steps=STEPS, **more):
    """Our latents after each step, [B, C, T, h, w], guided as the cascade's own rule says; `more`
    are raw inputs."""
    params, cfg = four.parameters(name), four.stage(name)
    image = jnp.asarray(pictures()[1])
    inputs = {**dict(zip(("ids", "negative"), four.ids(PROMPTS, NEGATIVE))), "image": image}
    inputs |= {"image_scale": np.float32(image_scale), "control_scale": np.float32(control_scale)}
    inputs |= {"reference": four.encode(image), **more}
    scales, states = guidance.make(GUIDANCE), []
    rule = cfg.rule.least(scales)
    conditioning = CONDITION(params, inputs, cfg=cfg, rule=rule)
    for _ in range(int(state.index), steps):
        state = ADVANCE(params, conditioning, scales, state, cfg=cfg, rule=rule, steps=steps, k=1)
        states.append(np.moveaxis(np.asarray(state.x), -1, 1))
    return states


def each_frame(network):
    """Gives the norms of a network's motion modules one frame at a time."""
    from mv2_jax.convert.reference import EachFrame

    for name, module in list(network.named_modules()):
        if re.search(r"\.motion_modules\.\d$", name):
            module.norm = EachFrame(module.norm)
    return network


class Torch:
    """diffusers' side for one sample."""

    def __init__(self, public, sample, scope="frame", *, pictured=True):
        modules, adapter, _ = public
        self.sample, self.modules = sample, modules
        self.unet = diffusers.UNetMotionModel.from_unet2d(modules["unet"], modules["motion"])
        if scope == "frame":
            each_frame(self.unet)
        if pictured:
            show_pictures(self.unet, adapter)
        self.unet.eval()
        self.scheduler = diffusers.DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="linear",
            steps_offset=1,
            clip_sample=False,
            set_alpha_to_one=False,
            timestep_spacing="leading",
        )

    @torch.no_grad()
    def text(self, ids):
        """States of one sample's prompt and of what to steer away from."""
        ids = [torch.from_numpy(np.array(side)[self.sample][None]).long() for side in ids]
        states = [self.modules["text_encoder"](side).last_hidden_state for side in ids]
        return dict(zip(("prompt_embeds", "negative_prompt_embeds"), states))

    @torch.no_grad()
    def picture(self, image=None):
        """The states of the picture, and before them those of a zero picture."""
        if image is None:
            image = pictures()[1][self.sample][None]
        image = jnp.asarray(image)
        pixels = torch.from_numpy(np.array(clip_vision.preprocess(image, 28)))
        pixels = pixels.permute(0, 3, 1, 2)
        encode, both = self.modules["vision"], (torch.zeros_like(pixels), pixels)
        states = [encode(x, output_hidden_states=True).hidden_states[-2] for x in both]
        return [torch.stack(states)]

    @torch.no_grad()
    def latents(self, frames=None):
        """Scaled latents [1, C, T, h, w] of frames [T, H, W, 3], by default all the picture."""
        if frames is None:
            frames = pictures()[1][self.sample][None].repeat(FRAMES, 0)
        vae = self.modules["vae"]
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
        z = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        return z.transpose(0, 1)[None]

    def noised(self, z, index, sample_keys):
        """z with the noise of the step of this index; our noise, by diffusers' scheduler."""
        eps = np.array(keys.normal(sample_keys, (FRAMES, 5, 7, 4)))[self.sample][None]
        eps = torch.from_numpy(eps).permute(0, 4, 1, 2, 3)
        self.scheduler.set_timesteps(STEPS)
        return self.scheduler.add_noise(z, eps, self.scheduler.timesteps[index : index + 1])

    def run(
        self,
        name,
        latents,
        ids,
        *,
        steps=STEPS,
        nets=("controlnet",),
        each=None,
        ready=None,
        size=SIZE,
        **given,
    ):
        """Latents [1, C, T, h, w] after each step of the pipeline of this name.

        `nets` are its ControlNets; `ready(pipeline)` is called before it runs, `each(pipeline, i)`
        before every step but the first. Without `ids` the pipeline encodes its prompts itself.
        """
        from PIL import Image

        controlled = {}
        if "Sparse" in name:
            controlled = {"controlnet": each_frame(copy.deepcopy(self.modules["sparse"]))}
            given["conditioning_frames"] = [Image.fromarray(pictures()[0][self.sample])]
        elif "ControlNet" in name:
            modules = [self.modules[net] for net in nets]
            controlled = {"controlnet": modules[0] if len(nets) == 1 else modules}
            shown = [Image.fromarray(pictures()[0][self.sample])] * FRAMES
            given.setdefault("conditioning_frames", shown)
        pipeline = getattr(diffusers, name)(
            vae=self.modules["vae"],
            text_encoder=self.modules["text_encoder"],
            tokenizer=None,
            unet=self.unet,
            motion_adapter=None,
            scheduler=self.scheduler,
            **controlled,
        )
        pipeline.set_progress_bar_config(disable=True)
        if "Sparse" in name:  # it draws from what the VAE says; here both take the mode
            pipeline.prepare_image = lambda *_: self.latents()[:, :, :1]
        if "VideoToVideo" not in name:
            given.setdefault("num_frames", FRAMES)
        states = []
        if ready is not None:
            ready(pipeline)

        def keep(pipeline, i, t, values):
            states.append(values["latents"].numpy().copy())
            if each is not None:
                each(pipeline, i + 1)
            return values

        pipeline(
            height=size[0],
            width=size[1],
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            latents=latents,
            output_type="latent",
            callback_on_step_end=keep,
            **(self.text(ids) if ids is not None else {}),
            **given,
        )
        return states


def first(state, sample):
    """One sample of our first state, in torch's layout."""
    return torch.from_numpy(np.array(state.x)[sample][None]).permute(0, 4, 1, 2, 3).contiguous()
