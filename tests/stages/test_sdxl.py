"""T2I on SDXL's networks: two text encoders, pooled text and sizes, against torch's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick
from torch_chains import ddim, drift, sdxl_prompt

from mv2_jax import numbers
from mv2_jax.config import (
    ControlNetConfig,
    ImageProjectionConfig,
    MotionConfig,
    ScheduleConfig,
    StageConfig,
    TextConfig,
    UNetConfig,
    VisionConfig,
)
from mv2_jax.convert.engine import convert
from mv2_jax.convert.sources import Renamed
from mv2_jax.convert.tables import clip, unet
from mv2_jax.diffusion import guidance, keys
from mv2_jax.stages import chain, controls, stage, t2i
from mv2_jax.stages.conditions.text import Text

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

VOCAB, LENGTH = 40, 9
EOS = VOCAB - 1
TEXT = TextConfig(VOCAB, LENGTH, 16, 2, 2, 32, eos_token_id=EOS)
TEXT_2 = TextConfig(VOCAB, LENGTH, 24, 3, 3, 36, "gelu", projection=12, eos_token_id=EOS)
UNET = UNetConfig(
    channels=(16, 32, 32),
    layers_per_block=1,
    transformers=(0, 1, 2),
    mid_transformers=2,
    heads=(2, 2, 4),
    context_width=40,
    norm_groups=8,
    linear_projection=True,
    pooled_width=12,
    size_ids_width=8,
)
SIZE = (40, 56)  # odd planes: 5 x 7 latents
NETWORKS = {"text_encoder": TEXT, "text_encoder_2": TEXT_2}
CFG = stage.build("t2i", StageConfig(UNET, ScheduleConfig(), SIZE), NETWORKS, factor=8)


def encode(params, cfg, ids):
    """The prompt of token ids."""
    return cfg.condition("text").prompt(params, cfg, ids)


IDS = np.full((3, LENGTH), EOS, np.int32)  # the first tokenizer pads with the end
IDS[:, 0], IDS[0, 1:4], IDS[1, 1:8], IDS[2, 1] = EOS - 1, (5, 6, 7), range(10, 17), 9
EMPTY = np.full((3, LENGTH), EOS, np.int32)
EMPTY[:, 0] = EOS - 1


def text_config(cfg):
    return transformers.CLIPTextConfig(
        vocab_size=VOCAB,
        max_position_embeddings=LENGTH,
        hidden_size=cfg.width,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        intermediate_size=cfg.mlp_width,
        hidden_act=cfg.activation,
        projection_dim=cfg.projection or 1,
        bos_token_id=EOS - 1,
        eos_token_id=EOS,
    )


def randomise(module, seed):
    """Random weights that keep activations near unit scale, norms near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            else:
                tensor.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
    return module.eval()


@pytest.fixture(scope="module")
def pair():
    """SDXL's three networks in torch, with random weights, and the same as our parameters."""
    first = randomise(transformers.CLIPTextModel(text_config(TEXT)), 0)
    second = randomise(transformers.CLIPTextModelWithProjection(text_config(TEXT_2)), 1)
    network = diffusers.UNet2DConditionModel(
        block_out_channels=UNET.channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=[1, 1, 2],
        attention_head_dim=UNET.heads,
        cross_attention_dim=UNET.context_width,
        norm_num_groups=UNET.norm_groups,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=UNET.size_ids_width,
        projection_class_embeddings_input_dim=UNET.pooled_width + 6 * UNET.size_ids_width,
    )
    network = randomise(network, 2)
    target = jax.eval_shape(lambda key: stage.init(CFG, key), jax.random.key(0))
    params = {"spatial": convert(network.state_dict(), unet.rules(UNET), target["spatial"])}
    for name, module in (("text_encoder", first), ("text_encoder_2", second)):
        state = module.state_dict()
        ((prefix, rules),) = clip.find_text(state, projection=name.endswith("2"))
        params[name] = convert(Renamed(state, prefix), rules, target[name])
    return (first, second, network), params


def off(ours, theirs):
    """Largest difference over the largest magnitude."""
    ours, theirs = np.asarray(ours), theirs.numpy()
    assert ours.shape == theirs.shape and theirs.std() > 0.01
    worst = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"relative error {worst:.1e}")
    return worst


def test_the_prompt_and_the_network(pair):
    (first, second, network), params = pair
    encoded = quick(encode, "cfg")
    prompt = encoded(params, CFG, IDS)
    text, pooled = sdxl_prompt(first, second, IDS, EOS)
    assert off(prompt.text, text) < 3e-6
    assert off(prompt.pooled, pooled) < 3e-6
    np.testing.assert_array_equal(prompt.size_ids, np.tile([40, 56, 0, 0, 40, 56], (3, 1)))
    x = np.random.default_rng(0).normal(size=(3, 5, 7, 4)).astype(np.float32)
    t = np.array([999, 7, 500], np.int32)
    sizes = torch.tensor([[40.0, 56, 0, 0, 40, 56]]).repeat(3, 1)
    with torch.no_grad():
        expected = network(
            torch.from_numpy(x).permute(0, 3, 1, 2),
            torch.from_numpy(t),
            text,
            added_cond_kwargs=dict(text_embeds=pooled, time_ids=sizes),
        ).sample
    got = quick(stage.predict_one, "cfg")(params, CFG, x[:, None], t, {"text": prompt})
    assert off(got[:, 0], expected.permute(0, 2, 3, 1)) < 1e-5
    nothing = encoded(params, CFG, EMPTY)
    assert not nothing.text.any() and not nothing.pooled.any()


@pytest.mark.slow
def test_twenty_five_guided_steps(pair):
    """The whole chain against diffusers' pipeline from the same noise, step by step."""
    (first, second, network), params = pair
    state = t2i.start(keys.seeds([7, 8, 9]), cfg=CFG, steps=25)
    noise = torch.from_numpy(np.array(state.x[:, 0])).permute(0, 3, 1, 2)
    text, pooled = sdxl_prompt(first, second, IDS, EOS)
    steps = []

    def keep(pipeline, i, t, values):
        steps.append(values["latents"].permute(0, 2, 3, 1).clone())
        return values

    pipeline = diffusers.StableDiffusionXLPipeline(
        None, first, second, None, None, network, ddim(CFG.stage.schedule), add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        height=SIZE[0],
        width=SIZE[1],
        num_inference_steps=25,
        guidance_scale=5.0,
        latents=noise,
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=torch.zeros_like(text),
        negative_pooled_prompt_embeds=torch.zeros_like(pooled),
        output_type="latent",
        callback_on_step_end=keep,
    )
    inputs, rule = {"ids": IDS, "negative": EMPTY}, CFG.rule
    conditioning = stage.condition(params, inputs, cfg=CFG, rule=rule)
    mine, scales = [], guidance.make(5.0)
    for _ in range(25):
        state = chain.advance(
            params, conditioning, scales, state, cfg=CFG, rule=rule, steps=25, k=1
        )
        mine.append(state.x[:, 0])
    assert drift(mine, steps) < 1e-5  # measured: 1.0e-6 at every step


@pytest.mark.slow
def test_sizes_a_crop_and_an_encoded_negative(pair):
    """As diffusers' pipeline has them, whose negative prompt is encoded even where it is empty."""
    (first, second, network), params = pair
    state = t2i.start(keys.seeds([7, 8, 9]), cfg=CFG, steps=3)
    noise = torch.from_numpy(np.array(state.x[:, 0])).permute(0, 3, 1, 2)
    towards, away = (sdxl_prompt(first, second, ids, EOS) for ids in (IDS, EMPTY))
    pipeline = diffusers.StableDiffusionXLPipeline(
        None, first, second, None, None, network, ddim(CFG.stage.schedule), add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        height=SIZE[0],
        width=SIZE[1],
        num_inference_steps=3,
        guidance_scale=5.0,
        latents=noise,
        prompt_embeds=towards[0],
        pooled_prompt_embeds=towards[1],
        negative_prompt_embeds=away[0],
        negative_pooled_prompt_embeds=away[1],
        original_size=(480, 640),
        crops_coords_top_left=(16, 8),
        target_size=(1024, 768),
        output_type="latent",
    ).images.permute(0, 2, 3, 1)

    condition = quick(stage.condition, "cfg", "rule")
    advance = quick(chain.advance, "cfg", "rule", "steps", "k")

    def made(**told):
        given = {"ids": IDS, "negative": EMPTY, **controls.of_text(CFG, numbers.T2I(**told))}
        conditioning = condition(params, given, cfg=CFG, rule=CFG.rule)
        scales, now = guidance.make(5.0), state
        for _ in range(3):
            now = advance(params, conditioning, scales, now, cfg=CFG, rule=CFG.rule, steps=3, k=1)
        return now.x[:, 0]

    told = {"original_size": "640x480", "crop": "8x16", "target_size": "768x1024"}
    assert off(made(**told, empty_text="encoded"), theirs) < 1e-5
    # Each of them counts.
    for name in told:
        assert off(made(**{**told, name: ""}, empty_text="encoded"), theirs) > 1e-3
    assert off(made(**told), theirs) > 1e-3


def test_the_loss_says_the_sizes_of_its_pictures(pair, monkeypatch):
    _, params = pair
    seen = []

    def predict(params, cfg, x, t, conditioning):
        seen.append(conditioning["text"].size_ids)
        return x

    monkeypatch.setattr(stage, "predict_one", predict)
    batch = {"latent": jnp.ones((3, 2, 3, 4)), "ids": IDS, "null_ids": EMPTY[0]}
    stage.loss(params, CFG, batch, jax.random.key(0))
    given = np.arange(18, dtype=np.float32).reshape(3, 6)
    stage.loss(params, CFG, {**batch, "size_ids": given}, jax.random.key(0))
    np.testing.assert_array_equal(seen[0], np.tile([16, 24, 0, 0, 16, 24], (3, 1)))
    np.testing.assert_array_equal(seen[1], given)


def test_encoders_that_do_not_fit_the_network_are_refused():
    with pytest.raises(ValueError, match="needs a second text encoder"):
        replace(CFG, conditions=(Text(TEXT),))
    with pytest.raises(ValueError, match="width 12, but the second text encoder's projection"):
        replace(CFG, conditions=(Text(TEXT, TextConfig(projection=16)),))


def test_the_video_stages_read_the_same_prompt(pair):
    """Without motion, image tokens and ControlNet, I2V's network on SDXL is T2I's, frame by frame;
    and both its ways with words and without reach it."""
    _, params = pair
    moving = replace(UNET, motion=MotionConfig(4, heads=2, norm_groups=8), image_tokens=True)
    networks = {
        **NETWORKS,
        "image_encoder": VisionConfig(28, 14, 16, 2, 2, 32, projection=None),
        "image_attn": ImageProjectionConfig(
            "resampler", 16, 16, 40, tokens=3, depth=1, heads=2, head_width=8
        ),
        "control": ControlNetConfig(UNET, (4, 8, 8, 16)),
    }
    cfg = stage.build("i2v", replace(CFG.stage, unet=moving, frames=2), networks, factor=8)
    # Zeros are what modules that do nothing yet are made of.
    nothing = jax.eval_shape(lambda key: stage.init(cfg, key), jax.random.key(0))
    assert nothing["control"]["add_embedding"]["linear_1"]["kernel"].shape[0] == 12 + 6 * 8
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), nothing)
    whole = {**nothing, **params}

    def conditioning(params, cfg, ids, none):
        inputs = {"ids": ids, "negative": none, "image": jnp.ones((3, 30, 30, 3))}
        return stage.condition.__wrapped__(params, inputs, cfg=cfg, rule=cfg.rule)

    given = quick(conditioning, "cfg")(whole, cfg, IDS, EMPTY)
    pooled = given["text"].pooled
    assert pooled.shape == (3, 3, 12) and not pooled[:2].any() and pooled[2].any()
    x = jax.random.normal(jax.random.key(1), (3, 3, *cfg.latent_shape))
    t = jnp.tile(jnp.array([901.0, 500.0, 7.0])[None], (3, 1))
    ours = quick(stage.predict, "cfg")(whole, cfg, x, t, given)
    # Rows of the empty prompt, then of the prompts, for either frame.
    rows = np.array([0, 2])
    ids = np.concatenate([EMPTY, IDS] * 2)
    prompt = quick(encode, "cfg")(params, CFG, ids)
    frames = jnp.concatenate([x[rows, :, frame].reshape(-1, 1, *x.shape[3:]) for frame in (0, 1)])
    times = jnp.tile(t[0], 4)
    pictures = quick(stage.predict_one, "cfg")(params, CFG, frames, times, {"text": prompt})
    both = jnp.concatenate([ours[rows, :, frame].reshape(-1, *x.shape[3:]) for frame in (0, 1)])
    np.testing.assert_allclose(both, pictures[:, 0], atol=2e-5)
