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
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="what the video should show")
    _add_words(parser.add_argument_group("prompt and seed"))
    _add_pictures(parser.add_argument_group("your own pictures and clips"))
    _add_output(parser.add_argument_group("output"))
    _add_many(parser.add_argument_group("several videos"))
    _add_weights(parser.add_argument_group("weights and devices"))
    _add_numbers(parser, helping)
    _add_choices(parser)


def _add_words(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--negative", metavar="TEXT", help="what the video should not show")
    for stage in DIFFUSION:
        add(f"--{stage}-negative", metavar="TEXT", help=f"... for {stage.upper()} only")
    add("--seed", metavar="N", help="seed of the noise (0; 0 to 4294967295), or random")
    add(
        "--from",
        dest="from_",
        metavar="JSON",
        help="make an earlier video again from its sidecar; other flags override what it says",
    )
    add(
        "--tell",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="the value of a condition that these weights define; may be repeated",
    )


def _add_pictures(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--image", metavar="FILE", help="start at I2V with your own picture")
    add("--video", metavar="FILE", help="start at V2V with your own clip")
    add(
        "--look",
        help="another reference picture for the image tokens; may be repeated",
        **_SEVERAL,
    )
    add(
        "--control",
        help="a picture or clip as the ControlNet's input; 2=FILE is for the second ControlNet",
        **_SEVERAL,
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-o",
        "--out",
        metavar="FILE",
        help="the file to write (out.mp4, numbered if it exists); several videos become out-1.mp4, "
        "out-2.mp4 ...",
    )
    add("--force", action="store_true", help="overwrite existing files")
    add(
        "--no-metadata",
        action="store_true",
        help="do not write into the files that they are generated, by which program, from which "
        "prompt and seed",
    )
    add("--size", metavar="WxH", help="size of the video in pixels (the weights')")
    add("--stages", action="store_true", help="also write the result of every stage")


def _add_many(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--variations",
        type=whole(1, 1024),
        metavar="N",
        help="videos of each prompt, with seeds N, N + 1 ... (1; 1 to 1024)",
    )
    add("--batch", type=whole(1, 1024), metavar="N", help="videos sampled together (1; 1 to 1024)")
    add(
        "--prompts",
        metavar="FILE",
        help="one request a line: a prompt, or a JSON object of option names; - reads them from "
        "standard input as they come. -o is then a folder (out); running it again continues",
    )
    add(
        "--part",
        metavar="I/N",
        help="with --prompts: this is process I of N that share the work (0/N to N-1/N)",
    )


def _add_weights(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--weights", metavar="DIR", help="a cascade folder (the shipped one)")
    add(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:W][@STAGES]",
        help="apply a LoRA with weight W (1) to all stages, or to those named (@t2i; @i2v,v2v); "
        "may be repeated",
    )
    add("--mesh", metavar="AXES", help=meshes.HELP)
    add(
        "--resident",
        choices=("all", "stage"),
        default="all",
        help="weights kept on the devices: all, or only those of the running stage, read when it "
        "begins (all)",
    )


def _add_numbers(parser: argparse.ArgumentParser, helping: bool) -> None:
    group = parser.add_argument_group(
        "numbers by stage",
        "In parentheses: the default of the shipped weights, and the range. Other weights have "
        "other defaults (`mv2 info --weights DIR`).",
    )
    known = shipped() if helping else usual()
    for setting in SETTINGS:
        group.add_argument(
            setting.flag, dest=setting.dest, metavar=setting.about.metavar, help=setting.help(known)
        )


def _add_choices(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "samplers, lengths and sizes", "The defaults are the weights'."
    )
    for choice in CHOICES:
        stages = ", ".join(stage.upper() for stage in choice.stages)
        group.add_argument(
            choice.flag,
            dest=choice.dest,
            metavar=choice.metavar,
            help=f"{stages}: {choice.command_help}{choice.range}",
        )
