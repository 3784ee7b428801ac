"""Textual inversion: prompts with embeddings against diffusers' `load_textual_inversion`."""

import json

import numpy as np
import pytest
import torch
from converting import convert, refused
from safetensors.torch import save_file

from mv2_jax import bundle, cli, text
from mv2_jax.convert.checkpoint import open_checkpoint
from mv2_jax.models.clip_text import TextEncoder
from mv2_jax.stages import prompts
from mv2_jax.text import CLIPTokenizer, Embedding, bpe, emphasis

WIDTH = 32  # of the small text encoder


def rows(seed, count, width=WIDTH):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, width))).float()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One embedding in each form that people have."""
    folder = tmp_path_factory.mktemp("embeddings")
    torch.save(
        {
            "string_to_token": {"*": torch.tensor(265)},
            "string_to_param": {"*": torch.nn.Parameter(rows(0, 3))},
            "name": "what its training called it",
            "step": 500,
            "sd_checkpoint": None,
        },
        folder / "bad-hands.pt",
    )
    save_file({"emb_params": rows(1, 2)}, folder / "style_7.safetensors")
    (folder / "cat-toy").mkdir()
    torch.save({"<cat-toy>": rows(2, 1)[0]}, folder / "cat-toy" / "learned_embeds.bin")
    save_file({"clip_l": rows(3, 2), "clip_g": rows(4, 2, 64)}, folder / "xl.safetensors")
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """transformers' tokenizer of CLIP's vocabulary."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps(bpe.vocabulary()), encoding="utf-8")
    pairs = ["#version: 0.2", *(" ".join(pair) for pair in bpe.merges())]
    (folder / "merges.txt").write_text("\n".join(pairs), encoding="utf-8")
    return transformers.CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def made(sources, files, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "cascade"
    flags = ["--embedding", files / "bad-hands.pt", "--embedding", files / "cat-toy"]
    flags += ["--embedding", f"{files / 'style_7.safetensors'}:my Style"]
    assert convert("--unet", sources / "pipeline", *flags, "--dtype", "float32", "-o", out) == 0
    return out


PROMPTS = [
    "a photo of <cat-toy>, my style",
    "bad-hands, bad-hands",
    "a my style, of <cat-toy> and bad-hands!",
    "nothing of one's own",
]


def test_ids_and_states_are_diffusers(made, files, small, theirs):
    from diffusers.loaders import TextualInversionLoaderMixin

    class Pipeline(TextualInversionLoaderMixin):
        def __init__(self):
            self.components, self.hf_device_map = {}, None
            self.tokenizer, self.text_encoder = theirs, small.text()

    pipeline = Pipeline()
    for file, token in (
        ("bad-hands.pt", "bad-hands"),
        ("cat-toy/learned_embeds.bin", None),
        ("style_7.safetensors", "my style"),
    ):
        pipeline.load_textual_inversion(str(files / file), token=token)
    told = [pipeline.maybe_convert_prompt(prompt, theirs) for prompt in PROMPTS]
    options = {"padding": "max_length", "truncation": True, "max_length": 77}
    ids = np.array(theirs(told, **options)["input_ids"])
    folder = bundle.read(made)
    tokenizer = text.from_json(folder.tokenizer)
    np.testing.assert_array_equal(tokenizer.encode(PROMPTS), ids)
    assert (ids > 49407).sum() == 3 + 6 + 6  # one, three or two tokens each
    with torch.no_grad():
        expected = pipeline.text_encoder.eval()(torch.from_numpy(ids), output_hidden_states=True)
    cfg = folder.config("text_encoder")
    ours = TextEncoder(cfg).apply({"params": folder.load("text_encoder")}, ids.astype(np.int32))
    for own, other in (
        (ours.last, expected.last_hidden_state),
        (ours.hidden_states[-2], expected.hidden_states[-2]),
        (ours.pooled, expected.pooler_output),
    ):
        np.testing.assert_allclose(own, other.numpy(), atol=2e-5, rtol=1e-5)


def test_names_are_words(made, capsys):
    tokenizer = text.from_json(bundle.read(made).tokenizer)
    first, toy, style = range(49408, 49411), [49411], [49412, 49413]
    plain = CLIPTokenizer().tokenize
    assert tokenizer.tokenize("Bad-Hands") == [*first]
    assert tokenizer.tokenize("embedding:bad-hands <CAT-toy>") == [*first, *toy]
    assert tokenizer.tokenize("a<cat-toy>b MY STYLE") == [*plain("a"), *toy, *plain("b"), *style]
    for other in ("bad-handsome", "my styles", "a bad-hand"):
        assert tokenizer.tokenize(other) == plain(other)
    ids, away = prompts.ids(tokenizer, ["a embedding:my style"], "EMBEDDING:bad-hands")
    assert [*ids[0, 2:4]] == style and [*away[0, 1:4]] == [*first]
    marked = emphasis.rows(tokenizer, ["a (my style:1.5) cat"])
    np.testing.assert_allclose(marked.weights[0, 0, 1:5], [1, 1.5, 1.5, 1])
    assert cli.main(["info", "--weights", str(made)]) == 0
    assert "embedding: my Style (2 tokens)" in capsys.readouterr().out


def test_verify_sees_what_is_in_the_table(made, sources, files, tmp_path, capsys):
    assert cli.main(["verify", str(made), "--component", "text_encoder"]) == 0
    assert "DIFFERENT" not in capsys.readouterr().out
    # The same cascade, but for another style than it says it was made of.
    other = tmp_path / "style_7.safetensors"
    save_file({"emb_params": rows(9, 2)}, other)
    path = made / "sources.json"
    before = path.read_text()
    try:
        path.write_text(before.replace(str(files / "style_7.safetensors"), str(other)))
        assert cli.main(["verify", str(made), "--component", "text_encoder"]) == 1
        assert "token_embedding/embedding holds other numbers" in capsys.readouterr().out
    finally:
        path.write_text(before)


def test_an_end_that_is_the_largest_id_stays_the_end(small, sources, files, tmp_path, capsys):
    """SD1.5's own config says eos_token_id 2, which stands for the largest id."""
    encoder = small.text()
    encoder.config.eos_token_id = 2
    encoder.save_pretrained(tmp_path / "text")
    flags = ["--unet", sources / "pipeline", "--text-encoder", tmp_path / "text"]
    assert convert(*flags, "--embedding", files / "bad-hands.pt", "-o", tmp_path / "out") == 0
    made = bundle.read(tmp_path / "out")
    assert made.config("text_encoder").eos_token_id == 49407
    assert cli.main(["verify", str(tmp_path / "out"), "--component", "text_encoder"]) == 0


def test_sdxl_has_them_in_both_encoders_and_its_stage_alone(
    small, sources, files, tmp_path, capsys
):
    for name, module in small.sdxl().items():
        module.save_pretrained(tmp_path / "sdxl" / name)
    flags = ["--unet", sources / "pipeline", "--t2i", tmp_path / "sdxl"]
    flags += ["--embedding", files / "xl.safetensors", "--dtype", "float32"]
    assert convert(*flags, "--embedding", files / "bad-hands.pt", "-o", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "xl goes into t2i alone" in said and "bad-hands goes into i2v, v2v alone" in said
    made = bundle.read(tmp_path / "out")
    for name, seed, width in (("t2i_text_encoder", 3, WIDTH), ("t2i_text_encoder_2", 4, 64)):
        table = made.load(name)["embeddings"]["token_embedding"]["embedding"]
        np.testing.assert_array_equal(table[49408:], rows(seed, 2, width))
    words = text.from_json(made.tokenizer)
    assert text.of_stage(words, "t2i").tokenize("xl")[0] == 49408
    video = text.of_stage(words, "i2v")
    assert video.tokenize("xl") == CLIPTokenizer().tokenize("xl")
    assert video.tokenize("bad-hands") == [49408, 49409, 49410]


def test_what_does_not_fit_is_said(sources, files, small, tmp_path, capsys):
    def said(*flags):
        return refused(capsys, "--unet", sources / "pipeline", *flags, "-o", tmp_path / "out")

    xl, hands = files / "xl.safetensors", files / "bad-hands.pt"
    assert "it is 32 and 64 wide, the text encoders of" in said("--embedding", xl)
    assert "share their text encoder" in said("--embedding", f"{hands}@i2v")
    twice = said("--embedding", hands, "--embedding", f"{hands}:Bad-Hands")
    assert "Bad-Hands is there twice" in twice
    assert "not an embedding" in said("--embedding", sources / "vision")
    save_file({"emb_params": rows(0, 80)}, tmp_path / "long.safetensors")
    assert "an embedding of 80 vectors; at most 75" in said(
        "--embedding", tmp_path / "long.safetensors"
    )


def test_a_file_alone_says_what_it_is(files, capsys):
    assert cli.main(["convert", str(files / "xl.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "an embedding (2 vectors, 32 and 64 wide), in SDXL's names" in out
    assert "for --embedding" in out
    (found,) = open_checkpoint(str(files / "cat-toy")).all("embedding")
    assert found.part.config.name == "<cat-toy>"


def test_the_tokenizers_json():
    held = (Embedding("a", 2), Embedding("b c", 1, ("t2i",)))
    again = text.from_json(CLIPTokenizer(embeddings=held).to_json())
    assert again.embeddings == held and again.vocab_size == 49411
    assert "embeddings" not in CLIPTokenizer().to_json()
