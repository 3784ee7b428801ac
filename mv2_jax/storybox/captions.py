"""What storybox worlds are called: a grammar of captions, its vocabulary, and a reader of prompts.

Every caption names all words of its world, each by one of several synonyms, in one of several
orders, in one sentence or in more: "a flat fox hopping over the snow at night under a clear sky,
with a rocket rising behind it".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mv2_jax.storybox.vocabulary import CATALOGUE, GROUPS, KINDS, NOTHING

_STYLES = {
    "rounded": ("rounded", "shaded", "soft"),
    "flat": ("flat", "plain", "simple"),
}
_PLACES = {
    "meadow": ("in a meadow", "over a meadow", "over the grass", "in a grassy field"),
    "sea": ("by the sea", "over the sea", "above the ocean", "over the waves"),
    "desert": ("in the desert", "over the desert", "among the dunes", "where cacti stand"),
    "snow": ("in the snow", "over the snow", "in a snowy land", "on snowy ground"),
    "mountains": ("in the mountains", "before the mountains", "below high peaks"),
    "forest": ("in the forest", "in the woods", "among the trees"),
    "town": ("in town", "in the street", "before a row of houses", "in the village"),
    "beach": ("on the beach", "at the seaside", "on the shore", "under palm trees"),
}
_HOURS = {
    "day": ("by day", "in the daytime", "in daylight", "in broad daylight"),
    "night": ("at night", "by night", "in the dark", "by moonlight"),
}
_WEATHERS = {
    "clear": ("under a clear sky", "in clear weather", "with no cloud to be seen"),
    "rain": ("in the rain", "while it rains", "as rain pours", "in a shower"),
    "snowfall": ("while it snows", "as it is snowing", "in a blizzard", "among snowflakes"),
    "fog": ("in the fog", "in thick mist", "in a haze", "while it is foggy"),
}
# Each as participle and as a finite verb; the first is the canonical one.
_ACTIONS = {
    "hopping": (
        ("hopping", "hops"),
        ("bouncing", "bounces"),
        ("jumping up and down", "jumps up and down"),
        ("leaping", "leaps"),
    ),
    "flying": (
        ("flying across", "flies across"),
        ("flying past", "flies past"),
        ("soaring by", "soars by"),
        ("gliding through the air", "glides through the air"),
    ),
    "driving": (
        ("driving along", "drives along"),
        ("driving past", "drives past"),
        ("cruising by", "cruises by"),
        ("rumbling along", "rumbles along"),
    ),
    "swimming": (
        ("swimming", "swims"),
        ("paddling", "paddles"),
        ("bobbing along", "bobs along"),
    ),
    "rolling": (
        ("rolling", "rolls"),
        ("rolling along", "rolls along"),
        ("tumbling along", "tumbles along"),
        ("turning over and over", "turns over and over"),
    ),
    "wobbling": (
        ("wobbling", "wobbles"),
        ("rocking from side to side", "rocks from side to side"),
        ("swaying", "sways"),
        ("teetering", "teeters"),
    ),
    "growing": (
        ("growing", "grows"),
        ("getting bigger", "gets bigger"),
        ("swelling", "swells"),
        ("becoming larger", "becomes larger"),
    ),
    "falling": (
        ("falling", "falls"),
        ("dropping down", "drops down"),
        ("plunging", "plunges"),
        ("coming down from above", "comes down from above"),
    ),
    "zooming": (
        ("standing still while the camera zooms in", "stands still while the camera zooms in"),
        ("waiting as the camera comes closer", "waits as the camera comes closer"),
        ("resting as we zoom in", "rests as we zoom in"),
    ),
    "panning": (
        ("standing still while the camera pans", "stands still while the camera pans"),
        ("waiting as the camera sweeps past", "waits as the camera sweeps past"),
        ("resting while the view slides by", "rests while the view slides by"),
    ),
}
_RELATIONS = {
    "left of": ("to the left of it", "on its left", "left of it", "to its left"),
    "right of": ("to the right of it", "on its right", "right of it", "to its right"),
    "behind": ("behind it", "at its back", "partly hidden by it"),
    "above": ("above it", "over it", "over its head", "higher up than it"),
}
_ASIDES = {
    "still": (("standing", "stands"), ("resting", "rests"), ("waiting", "waits")),
    "hopping": (("hopping", "hops"), ("bouncing", "bounces"), ("leaping", "leaps")),
    "wobbling": (("wobbling", "wobbles"), ("swaying", "sways"), ("teetering", "teeters")),
    "rising": (("rising", "rises"), ("going up", "goes up"), ("floating up", "floats up")),
}
_NAMED = (
    "{style} {thing}",
    "{style} {thing}",
    "{thing} in {style} style",
    "{thing} that is {style}",
)
_MAIN = (
    "{it} {doing} {place} {hour} {weather}",
    "{it} {does} {place} {weather}, {hour}",
    "{it} that {does} {place}, {hour} {weather}",
    "{hour}, {weather}, {it} {does} {place}",
    "{place} {it} {does} {hour} {weather}",
    "{weather} {it} is {doing} {place} {hour}",
    "{doing} {place} {hour}: {it}, {weather}",
    "{it} {place} {hour}. it {does} {weather}",
    "{it}. {weather}, {hour}, it is {doing} {place}",
)
_BESIDE = (
    "{main}, with {other} {doing} {relation}",
    "{main}, {other} {doing} {relation}",
    "{main}. {relation}, {other} {does}",
    "{main}. {other} {does} {relation}",
    "{main}; {relation} is {other}, {doing}",
)
_ARTICLES = ("a", "a", "the", "one")  # "a" stands for "an" too
LONGEST = 48  # words of a caption, at most
_WORD = re.compile(r"[a-z]+")

_ALSO = {  # what else a person may write; `parse` reads these too
    "meadow": "meadow grass field lawn",
    "sea": "sea ocean water",
    "desert": "desert sand dune",
    "snow": "snow winter",
    "mountains": "mountain mountains hills",
    "forest": "forest woods wood",
    "town": "town city street village",
    "beach": "beach shore coast",
    "day": "day daytime daylight",
    "night": "night nighttime moonlight",
    "rain": "rain raining rainy",
    "snowfall": "snowing snowfall",
    "fog": "fog mist foggy",
    "flying": "flying flies soaring fly",
    "driving": "driving drives drive",
    "swimming": "swim",
    "rolling": "roll",
    "hopping": "hop jumping jumps bounce",
    "wobbling": "wobble rocking",
    "growing": "grow",
    "falling": "fall dropping drops",
    "zooming": "zooms zoom",
    "panning": "pans panning",
}


def _spoken(table) -> dict[str, tuple[str, ...]]:
    """{class: phrases} of a table, both forms of verbs, and what else is read."""
    return {
        name: (
            *(p for each in phrases for p in ((each,) if isinstance(each, str) else each)),
            *_ALSO.get(name, "").split(),
        )
        for name, phrases in table.items()
    }


NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    **{
        group: {t.name: (t.name, *t.also) for t in CATALOGUE if t.group == group}
        for group in GROUPS
    },
    "style": _STYLES,
    "scene": _PLACES,
    "hour": _HOURS,
    "weather": _WEATHERS,
    "motion": {name: tuple(doing for doing, _ in forms) for name, forms in _ACTIONS.items()},
    "relation": _RELATIONS,
    "aside": {name: tuple(doing for doing, _ in forms) for name, forms in _ASIDES.items()},
}
"""{kind: {class: how captions call it}}: all that a world can hold, by its words."""


def _plural(name: str) -> tuple[str, ...]:
    return (f"{name[:-1]}ies",) if name.endswith("y") else (f"{name}s", f"{name}es")


def _meanings() -> dict[str, dict[str, str]]:
    """Phrase -> {kind: the class that it means}."""
    tables = {
        "thing": {t.name: (t.name, *t.also, *_plural(t.name)) for t in CATALOGUE},
        "style": _spoken(_STYLES),
        "scene": _spoken(_PLACES),
        "hour": _spoken(_HOURS),
        "weather": _spoken(_WEATHERS),
        "motion": _spoken(_ACTIONS),
        "relation": _spoken(_RELATIONS),
        "aside": _spoken(_ASIDES),
    }
    means: dict[str, dict[str, str]] = {}
    for kind, table in tables.items():
        for name, phrases in table.items():
            for phrase in phrases:
                means.setdefault(phrase, {})[kind] = name
    return means


_MEANINGS = _meanings()
# The longest first: a "flying saucer" does not fly, and the "camera" that pans is no thing.
_PHRASE = re.compile(
    r"\b(?:" + "|".join(map(re.escape, sorted(_MEANINGS, key=len, reverse=True))) + r")\b"
)


def vocabulary() -> list[str]:
    """Every word that a caption can hold, lower case, sorted: for a word tokenizer."""
    texts = ["an", *_NAMED, *_MAIN, *_BESIDE, *_ARTICLES]
    for names in NAMES.values():
        texts += [phrase for phrases in names.values() for phrase in phrases]
    for table in (_ACTIONS, _ASIDES):
        texts += [form for forms in table.values() for pair in forms for form in pair]
    return sorted(set(_WORD.findall(" ".join(re.sub(r"\{.*?\}", " ", text) for text in texts))))


VOCABULARY = vocabulary()


class _Chooser:
    """Choices settled by one number."""

    def __init__(self, seed: int) -> None:
        # An odd multiplier and a shift, so that neighbouring seeds differ in every choice.
        self.state = (int(seed) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64

    def __call__(self, options: Sequence):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return options[(self.state >> 33) % len(options)]


def _first(options: Sequence):
    return options[0]


def _article(article: str, noun: str) -> str:
    return f"{'an' if article == 'a' and noun[0] in 'aeiou' else article} {noun}"


def _compose(words: Sequence[int], choose) -> str:
    words = [int(word) for word in words]
    names = {kind: known[word] for (kind, known), word in zip(KINDS.items(), words)}
    thing = CATALOGUE[words[0]]
    noun = choose(_NAMED).format(
        style=choose(_STYLES[names["style"]]), thing=choose((thing.name, *thing.also))
    )
    doing, does = choose(_ACTIONS[names["motion"]])
    main = choose(_MAIN).format(
        it=_article(choose(_ARTICLES), noun),
        doing=doing,
        does=does,
        place=choose(_PLACES[names["scene"]]),
        hour=choose(_HOURS[names["hour"]]),
        weather=choose(_WEATHERS[names["weather"]]),
    )
    if words[6] == NOTHING:
        return main
    second = CATALOGUE[words[6]]
    doing, does = choose(_ASIDES[names["aside"]])
    return choose(_BESIDE).format(
        main=main,
        other=_article(choose(_ARTICLES), choose((second.name, *second.also))),
        relation=choose(_RELATIONS[names["relation"]]),
        doing=doing,
        does=does,
    )


def canonical(words: Sequence[int]) -> str:
    """The plainest caption of a world's words (indices, as `KINDS` orders them)."""
    return _compose(words, _first)


def caption(seed: int, words: Sequence[int]) -> str:
    """One of the many captions of a world's words, settled by `seed` (any int)."""
    return _compose(words, _Chooser(seed))


def classes(text: str) -> dict[str, list[str]]:
    """What a prompt names of each kind, in the order of `KINDS`: {"thing": ["fox"], "style": [],
    ..., "second": ["rocket"], ...}.

    The first thing named is the one that moves; what follows the second thing or the relation to
    it, whichever comes first, tells of the second.
    """
    text = " ".join(_WORD.findall(text.lower()))
    said = [_MEANINGS[match.group()] for match in _PHRASE.finditer(text)]
    things = [i for i, means in enumerate(said) if "thing" in means]
    later = [i for i, means in enumerate(said) if "relation" in means]
    later = [i for i in later if len(things) > 1 and i > things[0]]
    turn = min([*things[1:], *later], default=len(said))
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for i, means in enumerate(said):
        for kind, name in means.items():
            if kind == "thing":
                kind = "thing" if i == things[0] else "second"
            elif kind == "relation" and i not in later:
                continue
            elif (kind == "motion" and i > turn) or (kind == "aside" and i < turn):
                continue
            if name not in found[kind]:
                found[kind].append(name)
    return found


def parse(text: str) -> tuple[int, ...] | None:
    """The words that a prompt asks for, indices as `KINDS` orders them.

    None where thing, scene or motion is missing, where a second thing has no relation to it, or
    where two of a kind disagree. What else is not said is the first of its kind: rounded, by day,
    in clear weather.
    """
    found = classes(text)
    if not found["second"]:
        found.update(second=["nothing"], relation=["left of"], aside=["still"])
    for kind in ("style", "hour", "weather", "aside"):
        found[kind] = found[kind] or [KINDS[kind][0]]
    if any(len(names) != 1 for names in found.values()):
        return None
    return tuple(known.index(found[kind][0]) for kind, known in KINDS.items())
