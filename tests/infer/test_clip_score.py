"""The CLIP score beside transformers' CLIPModel, of random weights."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from mv2_jax import cli
from mv2_jax.errors import InputError
from mv2_jax.infer import clip_score, media, perceptual
from mv2_jax.text import CLIPTokenizer

PROMPTS = ("a red ball bouncing over a meadow", "two blue cubes, slowly turning at night")


def made(folder, **changes):
    """A tiny CLIP that transformers wrote."""
    torch.manual_seed(0)
    tower = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4}  # fmt: skip
    cfg = CLIPConfig(
        text_config={**tower, "vocab_size": 49408, **changes},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    model = CLIPModel(cfg).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return made(folder, hidden_act="quick_gelu"), folder


def test_the_score_is_transformers(clip):
    model, folder = clip
    ours = clip_score.load(str(folder))
    pictures = np.random.default_rng(0).integers(0, 256, (3, 45, 70, 3), np.uint8)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    pixels = processor([Image.fromarray(x) for x in pictures], return_tensors="pt").pixel_values
    ids = torch.tensor(np.asarray(CLIPTokenizer().encode(PROMPTS)), dtype=torch.long)
    with torch.no_grad():
        told = model(input_ids=ids, pixel_values=pixels)
    cosines = (told.logits_per_image / model.logit_scale.exp().detach()).numpy()
    for k, prompt in enumerate(PROMPTS):
        found = ours.score(prompt, media.to_float(pictures))
        np.testing.assert_allclose(found, np.maximum(100 * cosines[:, k], 0), atol=2e-3)
    assert np.abs(100 * cosines).max() > 1  # else 0 would do


def test_halves_of_two_clips_are_refused(tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel

    cfg = CLIPTextConfig(vocab_size=64, hidden_size=64, num_hidden_layers=1)
    CLIPTextModel(cfg).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not an image encoder"):
        clip_score.load(str(tmp_path))


def test_the_command_scores_videos_with_prompts(clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(perceptual, "shipped", lambda net: None)
    frames = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), np.uint8)
    folder = tmp_path / "a"
    folder.mkdir()
    media.write_video(folder / "x.mp4", frames, 8)
    (folder / "x.json").write_text('{"prompt": "a red ball"}')
    assert cli.main(["eval", "videos", str(folder), "--clip", str(clip[1])]) == 0
    assert "CLIP score of the prompt" in capsys.readouterr().out
