"""The command line of `mv2 generate`."""

from __future__ import annotations

import argparse

from mv2_jax.arguments import whole
from mv2_jax.infer import meshes
from mv2_jax.infer.choices import CHOICES
from mv2_jax.infer.settings import SETTINGS, shipped
from mv2_jax.numbers import DIFFUSION, usual

_SEVERAL = {"action": "append", "default": [], "metavar": "FILE"}


def add(parser: argparse.ArgumentParser, helping: bool) -> None:
    """Adds all of it to a parser.

    Args:
        helping: its help is about to be shown, with the numbers of the shipped weights.
    """
    parser.add_argument(
        "prompt", nargs="*", metavar="PROMPT", help="what the video is to show, in words"
    )
    _add_words(parser.add_argument_group("beside the prompt"))
    _add_pictures(parser.add_argument_group("pictures and clips of yours"))
    _add_output(parser.add_argument_group("the video"))
    _add_many(parser.add_argument_group("several videos"))
    _add_weights(parser.add_argument_group("weights and devices"))
    _add_numbers(parser, helping)
    _add_choices(parser)


def _add_words(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--negative", metavar="TEXT", help="what to steer away from")
    for stage in DIFFUSION:
        add(f"--{stage}-negative", metavar="TEXT", help=f"... in {stage.upper()} alone")
    add("--seed", metavar="N", help="another seed, another video (0; 0 to 4294967295); random: any")
    add("--from", dest="from_", metavar="JSON", help="make an earlier video again; flags override")
    add(
        "--tell",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what a condition of the weights' own is told; once for each",
    )


def _add_pictures(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--image", metavar="FILE", help="start at I2V, from your own picture")
    add("--video", metavar="FILE", help="start at V2V, from your own clip")
    add(
        "--look",
        help="a picture whose look counts beside the first one's; for several, again",
        **_SEVERAL,
    )
    add(
        "--control",
        help="a picture or clip that the ControlNet sees instead of the picture; 2=FILE is for the "
        "second",
        **_SEVERAL,
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-o",
        "--out",
        metavar="FILE",
        help="the video's name (out.mp4, numbered where there is one already); out-1.mp4 ... for "
        "several",
    )
    add("--force", action="store_true", help="replace what is there already")
    add(
        "--no-metadata",
        action="store_true",
        help="leave out of the video and its pictures that they are generated, by what and from "
        "which prompt and seed",
    )
    add("--size", metavar="WxH", help="size of the video in pixels (the weights' own)")
    add("--stages", action="store_true", help="keep what every stage made")


def _add_many(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--variations",
        type=whole(1, 1024),
        metavar="N",
        help="so many videos of each prompt, from seed, seed + 1 ... (1; 1 to 1024)",
    )
    add("--batch", type=whole(1, 1024), metavar="N", help="videos made at a time (1; 1 to 1024)")
    add(
        "--prompts",
        metavar="FILE",
        help="many: a prompt a line, or a JSON object of these options' names; - reads lines from "
        "standard input as they come. -o is then a folder (out); run again, it goes on",
    )
    add(
        "--part",
        metavar="I/N",
        help="with --prompts: of N processes that share them, number I (0/N to N-1/N)",
    )


def _add_weights(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--weights", metavar="DIR", help="a cascade folder (the one that ships)")
    add(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:W][@STAGES]",
        help="a LoRA, W times (1), in all stages or those named (@t2i; @i2v,v2v); may be repeated",
    )
    add("--mesh", metavar="AXES", help=meshes.HELP)
    add(
        "--resident",
        choices=("all", "stage"),
        default="all",
        help="weights that lie on the devices: all, or the running stage's alone, read when it "
        "begins (all)",
    )


def _add_numbers(parser: argparse.ArgumentParser, helping: bool) -> None:
    group = parser.add_argument_group(
        "numbers, by stage",
        "In brackets: what the shipped weights like best, and the range. Other weights have their "
        "own (`mv2 info --weights DIR`).",
    )
    known = shipped() if helping else usual()
    for setting in SETTINGS:
        group.add_argument(setting.flag, dest=setting.dest, metavar="N", help=setting.help(known))


def _add_choices(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "samplers, lengths and sizes", "Without one of these the weights' own holds."
    )
    for choice in CHOICES:
        stages = ", ".join(stage.upper() for stage in choice.stages)
        group.add_argument(
            choice.flag,
            dest=choice.dest,
            metavar=choice.metavar,
            help=f"{stages}: {choice.help}{choice.range}",
        )
