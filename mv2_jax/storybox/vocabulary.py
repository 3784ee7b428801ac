"""The storybox's words, for whoever reads prompts: nothing here imports JAX.

A thing is named by the row of a table: its name, the icon that both packages of drawings have of
it, and other words for it.
"""

from __future__ import annotations

from typing import NamedTuple


class Thing(NamedTuple):
    """name: what captions call it first; icon: its name in the packages of drawings; also: other
    words for it; group: "animal", "vehicle", "food" or "object"."""

    name: str
    icon: str
    also: tuple[str, ...]
    group: str


_TABLE = {
    "animal": """
        cat: kitty | dog: hound | fox | rabbit: bunny, hare | mouse | bear | panda | koala | tiger
        lion | cow | pig: hog | frog: toad | monkey: ape | chicken: hen | penguin | bird | duck
        owl | wolf | horse: pony | unicorn | bee=honeybee: honeybee | butterfly | snail
        ladybug=lady-beetle: ladybird | turtle: tortoise | snake: serpent | octopus | crab | lobster
        fish=tropical-fish | dolphin | whale=spouting-whale | shark | crocodile: alligator | zebra
        elephant | giraffe | camel | kangaroo | sheep=ewe | goat | deer | hedgehog
        dinosaur=sauropod: brontosaurus | parrot | swan
    """,
    "vehicle": """
        car=automobile: automobile | bus | taxi: cab | ambulance | tractor
        fire engine=fire-engine: fire truck | racing car=racing-car: race car
        truck=delivery-truck: lorry | bicycle: bike | scooter=motor-scooter: moped | motorcycle
        train=locomotive: locomotive | helicopter | plane=airplane: airplane | rocket: spaceship
        flying saucer=flying-saucer: ufo | sailboat | speedboat | canoe | tram=tram-car
    """,
    "food": """
        apple=red-apple | banana | pear | lemon | watermelon | grape=grapes | strawberry
        cherry=cherries | peach | pineapple | avocado | tomato | carrot | corn=ear-of-corn: maize
        broccoli | mushroom | bread: loaf | cheese=cheese-wedge | hamburger: burger | pizza
        hot dog=hot-dog | doughnut: donut | cookie: biscuit | cake=birthday-cake
        ice cream=ice-cream: sundae | cupcake: muffin
    """,
    "object": """
        football=soccer-ball: soccer ball | basketball | balloon | umbrella: parasol | guitar
        trumpet | drum | violin: fiddle | key | crown | hat=top-hat | teddy=teddy-bear: teddy bear
        robot: android | gift=wrapped-gift: present | candle | lamp=light-bulb: light bulb
        clock=alarm-clock: alarm | camera | book=books | hammer | anchor | bell
        diamond=gem-stone: gem | trophy: prize | kite | telescope
    """,
}


def _things():
    for group, rows in _TABLE.items():
        for row in rows.replace("\n", "|").split("|"):
            head, _, also = row.strip().partition(":")
            name, _, icon = head.partition("=")
            if name:
                words = tuple(word.strip() for word in also.split(",") if word.strip())
                yield Thing(name, icon or name, words, group)


CATALOGUE = tuple(_things())
GROUPS = tuple(_TABLE)
THINGS = tuple(thing.name for thing in CATALOGUE)
STYLES = ("rounded", "flat")  # Noto Emoji, Fluent Emoji flat
SCENES = ("meadow", "sea", "desert", "snow", "mountains", "forest", "town", "beach")
HOURS = ("day", "night")
WEATHERS = ("clear", "rain", "snowfall", "fog")
MOTIONS = (
    "hopping",
    "flying",
    "driving",
    "swimming",
    "rolling",
    "wobbling",
    "growing",
    "falling",
    "zooming",
    "panning",
)
RELATIONS = ("left of", "right of", "behind", "above")
ASIDES = ("still", "hopping", "wobbling", "rising")
"""What the second thing does."""
NOTHING = len(THINGS)
"""The index of a second thing that is not there."""
KINDS = {
    "thing": THINGS,
    "style": STYLES,
    "scene": SCENES,
    "hour": HOURS,
    "weather": WEATHERS,
    "motion": MOTIONS,
    "second": (*THINGS, "nothing"),
    "relation": RELATIONS,
    "aside": ASIDES,
}
"""{kind: its classes}, in the order in which a world's words are numbered. Of a world of one thing
`second` is "nothing", and relation and aside are the first ones and mean nothing."""
PROPS = ("evergreen-tree", "deciduous-tree", "palm-tree", "house", "cactus")
"""Drawings that stand about in scenes; no world's things."""
