"""What toybox worlds are called: a grammar of captions, its vocabulary, and a reader of prompts.

Every caption names all four words of its world (thing, colour, scene, motion), each by one of
several synonyms, in one of several orders: "a red ball bouncing over a meadow", "in the snow, a
crimson sphere hops".
"""

from __future__ import annotations

import re

from mv2_jax.toybox.vocabulary import COLOURS, MOTIONS, SCENES, THINGS

_COLOUR_NAMES = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "white": ("white", "ivory"),
}
_THING_NAMES = {
    "ball": ("ball", "sphere"),
    "cube": ("cube", "box"),
    "star": ("star",),
    "heart": ("heart",),
    "ring": ("ring", "hoop"),
    "pyramid": ("pyramid",),
}
_PLACES = {
    "night sky": ("in the night sky", "at night", "under a starry sky", "in the starry night"),
    "sunset": ("at sunset", "against the sunset", "at dusk", "in front of a sunset"),
    "meadow": ("over a meadow", "in a meadow", "over the grass", "in a grassy meadow"),
    "sea": ("over the sea", "by the sea", "above the ocean", "over the ocean"),
    "desert": ("in the desert", "over the desert", "over the sand", "above the dunes"),
    "snow": ("in the snow", "over the snow", "in a snowy land", "above snowy hills"),
}
# Each as participle and as a finite verb; the first is the canonical one.
_ACTIONS = {
    "moving left": (
        ("moving left", "moves left"),
        ("moving to the left", "moves to the left"),
        ("drifting left", "drifts left"),
        ("sliding to the left", "slides to the left"),
    ),
    "moving right": (
        ("moving right", "moves right"),
        ("moving to the right", "moves to the right"),
        ("drifting right", "drifts right"),
        ("sliding to the right", "slides to the right"),
    ),
    "rising": (("rising", "rises"), ("going up", "goes up"), ("floating up", "floats up")),
    "falling": (("falling", "falls"), ("going down", "goes down"), ("dropping", "drops")),
    "bouncing": (
        ("bouncing", "bounces"),
        ("hopping", "hops"),
        ("bouncing up and down", "bounces up and down"),
    ),
    "spinning": (("spinning", "spins"), ("rotating", "rotates"), ("turning", "turns")),
    "growing": (("growing", "grows"), ("getting bigger", "gets bigger"), ("expanding", "expands")),
    "shrinking": (("shrinking", "shrinks"), ("getting smaller", "gets smaller")),
}
_ORDERS = (
    "{article} {colour} {thing} {doing} {place}",
    "{article} {colour} {thing} that {does} {place}",
    "{article} {colour} {thing} {place}, {doing}",
    "{place}, {article} {colour} {thing} {does}",
    "{place} {article} {colour} {thing} is {doing}",
    "{article} {thing} that is {colour}, {doing} {place}",
    "{doing} {place}: {article} {colour} {thing}",
)
_ARTICLES = ("a", "a", "the", "one")  # "a" stands for "an" too
_OPENINGS = ("", "", "", "", "", "", "", "a video of ")

# What else a person may write; `parse` reads these besides every word of the captions above.
_ALSO = {
    "ball": "balls spheres globe orb",
    "cube": "block dice die",
    "star": "stars",
    "ring": "torus",
    "yellow": "gold",
    "night sky": "nighttime moonlight midnight",
    "sunset": "evening",
    "meadow": "field grassland",
    "sea": "water waves",
    "desert": "dune sandy",
    "snow": "winter",
    "rising": "rise ascending ascends upward upwards",
    "falling": "fall descending descends downward downwards",
    "bouncing": "bounce hop jumping jumps",
    "spinning": "spin rotate turn",
    "growing": "grow enlarging larger",
    "shrinking": "shrink",
}
# Words of the captions that say nothing of which class is meant.
_PLAIN = set(
    "a the one that is video of in at under over by above against front to and land hills sky "
    "moving moves drifting drifts sliding slides going goes floating floats getting gets".split()
)
NAMES = {
    "thing": _THING_NAMES,
    "colour": _COLOUR_NAMES,
    "scene": _PLACES,
    "motion": {name: tuple(doing for doing, _ in forms) for name, forms in _ACTIONS.items()},
}
"""{kind: {class: how captions call it}}: all that a world can hold, by its words."""
_KINDS = {"thing": THINGS, "colour": COLOURS, "scene": SCENES, "motion": MOTIONS}
_WORD = re.compile(r"[a-z]+")


def _meanings() -> dict[str, set[tuple[str, str]]]:
    """Word -> the (kind, class) pairs that it may mean."""
    meanings: dict[str, set[tuple[str, str]]] = {}
    for kind, table in zip(_KINDS, (_THING_NAMES, _COLOUR_NAMES, _PLACES, _ACTIONS)):
        for name, phrases in table.items():
            texts = [" ".join(p) if isinstance(p, tuple) else p for p in phrases]
            for word in _WORD.findall(" ".join([*texts, _ALSO.get(name, "")])):
                if word not in _PLAIN:
                    meanings.setdefault(word, set()).add((kind, name))
    # "bouncing up and down" goes both ways and is neither rising nor falling.
    for word in ("up", "down"):
        meanings[word].discard(("motion", "bouncing"))
    return meanings


_MEANINGS = _meanings()


def vocabulary() -> list[str]:
    """Every word that a caption can hold, lower case, sorted: for a word tokenizer."""
    texts = ["an", *_ORDERS, *_ARTICLES, *_OPENINGS]
    for table in (_THING_NAMES, _COLOUR_NAMES, _PLACES):
        texts += [phrase for phrases in table.values() for phrase in phrases]
    texts += [form for forms in _ACTIONS.values() for pair in forms for form in pair]
    words = set(_WORD.findall(" ".join(re.sub(r"\{.*?\}", " ", text) for text in texts)))
    return sorted(words)


VOCABULARY = vocabulary()


def canonical(thing: int, colour: int, scene: int, motion: int) -> str:
    """The plainest caption of a four-tuple of indices: "a red ball bouncing over a meadow"."""
    action, place = _ACTIONS[MOTIONS[motion]][0][0], _PLACES[SCENES[scene]][0]
    article = "an" if COLOURS[colour][0] in "aeiou" else "a"
    return f"{article} {COLOURS[colour]} {THINGS[thing]} {action} {place}"


def caption(seed: int, thing: int, colour: int, scene: int, motion: int) -> str:
    """One of the many captions of a four-tuple of indices, settled by `seed` (any int).

    At most 18 words.
    """
    # An odd multiplier and a shift, so that neighbouring seeds differ in every choice.
    rest = (int(seed) * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64 >> 16

    def choose(options):
        nonlocal rest
        rest, index = divmod(rest, len(options))
        return options[index]

    colour_name = choose(_COLOUR_NAMES[COLOURS[colour]])
    thing_name = choose(_THING_NAMES[THINGS[thing]])
    doing, does = choose(_ACTIONS[MOTIONS[motion]])
    place, order = choose(_PLACES[SCENES[scene]]), choose(_ORDERS)
    article, opening = choose(_ARTICLES), choose(_OPENINGS)
    if article == "a":
        follower = thing_name if "{article} {thing}" in order else colour_name
        article = "an" if follower[0] in "aeiou" else "a"
    if not order.startswith("{article}"):
        opening = ""
    return opening + order.format(
        article=article,
        colour=colour_name,
        thing=thing_name,
        doing=doing,
        does=does,
        place=place,
    )


def classes(text: str) -> dict[str, list[str]]:
    """What a prompt names of each kind, {"thing": ["ball"], "colour": [], ...}, in the order of
    `NAMES`."""
    found: dict[str, set[str]] = {kind: set() for kind in _KINDS}
    for word in _WORD.findall(text.lower()):
        for kind, name in _MEANINGS.get(word, ()):
            found[kind].add(name)
    if "bouncing" in found["motion"]:
        found["motion"] -= {"rising", "falling"}
    return {kind: [name for name in known if name in found[kind]] for kind, known in _KINDS.items()}


def parse(text: str) -> dict[str, str] | None:
    """The four words that a prompt asks for, {"thing": "ball", "colour": "red", ...}.

    None where one of the four is missing, or where two words disagree.
    """
    found = classes(text)
    if any(len(names) != 1 for names in found.values()):
        return None
    return {kind: names[0] for kind, names in found.items()}


def indices(words: dict[str, str]) -> tuple[int, int, int, int]:
    """The four indices (thing, colour, scene, motion) of what `parse` returns."""
    thing, colour, scene, motion = (known.index(words[kind]) for kind, known in _KINDS.items())
    return thing, colour, scene, motion
