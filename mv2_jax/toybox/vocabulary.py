"""The toybox's words, for whoever reads prompts: nothing here imports JAX."""

THINGS = ("ball", "cube", "star", "heart", "ring", "pyramid")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SCENES = ("night sky", "sunset", "meadow", "sea", "desert", "snow")
MOTIONS = (
    "moving left",
    "moving right",
    "rising",
    "falling",
    "bouncing",
    "spinning",
    "growing",
    "shrinking",
)
SIZES = (len(THINGS), len(COLOURS), len(SCENES), len(MOTIONS))
