"""Embeddings of textual inversion, put into the text encoders of a cascade on its way.

An embedding's vectors become rows of the table of tokens, after CLIP's own, and the tokenizer of
the cascade learns its name. It goes wherever the text encoders are as wide as it is: one of SD1.5
into one text encoder, one of SDXL into both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mv2_jax.convert import sources
from mv2_jax.convert.checkpoint import SourceNetwork
from mv2_jax.convert.lora_merge import apart
from mv2_jax.convert.ops import as_numpy
from mv2_jax.convert.pending import PendingNetwork, Rows
from mv2_jax.errors import InputError
from mv2_jax.lookup import one_of
from mv2_jax.numbers import DIFFUSION
from mv2_jax.text.bpe import VOCABULARY, CLIPTokenizer, Embedding

# The text encoders of the stages that share them.
_ENCODERS = {
    ("i2v", "v2v"): ("text_encoder", "text_encoder_2"),
    ("t2i",): ("t2i_text_encoder", "t2i_text_encoder_2"),
}


def put_into(
    built: Mapping[str, PendingNetwork],
    found: SourceNetwork,
    name: str | None = None,
    stages: Collection[str] = (),
) -> tuple[dict[str, PendingNetwork], Embedding]:
    """The networks with an embedding's vectors, and what the tokenizer is to know of it.

    Args:
        name: what prompts call it; None as the file says, or is called.
        stages: those whose text encoders get it, which must be as wide as it is; none means every
            one that is.

    Raises:
        InputError: no text encoder is so wide, its table is not CLIP's, or stages that share a text
            encoder are to be told apart.
    """
    for stage in stages:
        one_of(stage, DIFFUSION, "stage")
    cfg = found.part.config
    file = sources.paths(found.path, found.variant)[0]
    name = name or cfg.name or file.stem
    if name != name.strip() or not name:
        raise InputError(f"{found.asked}: {name!r} is no name for an embedding")
    if stages and set(stages) != set(DIFFUSION):
        built = apart(built)
    fitting: dict[tuple[str, ...], list[str]] = {}
    for of, names in _own(built).items():
        if stages and not set(of) & set(stages):
            continue
        if stages and not set(of) <= set(stages):
            raise InputError(f"{found.asked}: {' and '.join(of)} share their text encoder")
        if tuple(built[each].config.width for each in names) == cfg.widths:
            fitting[of] = names
        elif stages:
            raise InputError(f"{found.asked}: {_misfit(cfg.widths, built, names, of)}")
    if not fitting:
        said = [_misfit(cfg.widths, built, names, of) for of, names in _own(built).items()]
        raise InputError(f"{found.asked}: {said[0] if said else 'there is no text encoder'}")
    new: dict[int, PendingNetwork] = {}
    for names in fitting.values():
        for index, each in enumerate(names):
            network = built[each]
            if network.config.vocab_size != VOCABULARY + sum(len(r.vectors) for r in network.rows):
                raise InputError(
                    f"{network.found.asked}: its text encoder knows {network.config.vocab_size} "
                    f"tokens, not CLIP's {VOCABULARY}; embeddings go into that alone"
                )
            vectors = as_numpy(found.part.tensors[str(index)])
            rows = Rows(name, str(file), vectors.reshape(-1, vectors.shape[-1]))
            new.setdefault(id(network), network.with_rows(rows))
    whole = set().union(*fitting) == set().union(*_own(built))
    here = () if whole else tuple(stage for of in fitting for stage in of)
    named = {each for names in fitting.values() for each in names}
    networks = {each: new[id(p)] if each in named else p for each, p in built.items()}
    return networks, Embedding(name, cfg.vectors, here)


def unlike(known: Collection[Embedding], new: Embedding) -> None:
    """Raises InputError for a name that another embedding has already."""
    if new.name.casefold() in {each.name.casefold() for each in known}:
        raise InputError(f"--embedding: {new.name} is there twice; FILE:NAME names one otherwise")


def tokenizer(text: PendingNetwork | None, known: Collection[Embedding]) -> CLIPTokenizer:
    """The cascade's tokenizer."""
    length = {"max_length": text.config.max_length} if text else {}
    return CLIPTokenizer(**length, embeddings=tuple(known))


def _own(built: Mapping[str, PendingNetwork]) -> dict[tuple[str, ...], list[str]]:
    """{stages: the text encoders that they share}. T2I shares the others' unless it has its own."""
    held = {of: [name for name in names if name in built] for of, names in _ENCODERS.items()}
    if held[("t2i",)]:
        return held
    video = held[("i2v", "v2v")]
    return {("t2i", "i2v", "v2v"): video} if video else {}


def _misfit(
    widths: tuple[int, ...],
    built: Mapping[str, PendingNetwork],
    names: list[str],
    of: tuple[str, ...],
) -> str:
    theirs = " and ".join(str(built[name].config.width) for name in names) or "none"
    own = " and ".join(map(str, widths))
    return f"it is {own} wide, the text encoders of {', '.join(of)} {theirs}"
