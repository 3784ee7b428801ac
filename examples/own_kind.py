"""A kind of checkpoint of one's own for `mv2 convert`: ControlNets as a publisher of its own stores
them, diffusers' tensors under other names.

    PYTHONPATH=examples mv2 convert acme.safetensors --kind own_kind:KIND   # what it is
    PYTHONPATH=examples mv2 convert ... --controlnet acme.safetensors --kind own_kind:KIND -o out/
"""

from mv2_jax.config import ControlNetConfig
from mv2_jax.convert import config_from_shapes, diffusers_config, param_shapes
from mv2_jax.convert.kind import FileNetwork, Kind, Torch, claim, shapes
from mv2_jax.convert.kinds import controlnet as plain
from mv2_jax.convert.tables import controlnet

LAYOUT = "Acme's"


def find(source, settings):
    """Its networks in a file: none, or one."""
    names = {name.removeprefix("acme/"): name for name in source if name.startswith("acme/")}
    if names:
        cfg = config_from_shapes.controlnet(shapes(source, names), settings)
        table = controlnet.rules(cfg)
        tensors = claim(source, names, table)
        yield FileNetwork("own_kind:KIND", "Acme's ControlNet", LAYOUT, tensors, table, cfg)


def theirs(own, part):
    """Its tensors in diffusers' names, for `mv2 verify`."""
    return {name.removeprefix("acme/"): value for name, value in own.items()}


KIND = Kind(
    title="an Acme ControlNet",
    serves="--controlnet, of Acme's",
    find=find,
    config=ControlNetConfig,
    fills="controlnet",
    target=param_shapes.controlnet,
    fits=plain.fits,
    torch=Torch(
        compare="mv2_jax.convert.compare_networks:control",
        published=lambda cfg, unet: diffusers_config.controlnet(cfg),
        unsaid=lambda cfg: {"attention_head_dim": 8},
        converters={LAYOUT: "own_kind:theirs"},
    ),
)
