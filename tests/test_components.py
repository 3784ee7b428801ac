"""Which components' weights lie on the device, and when."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mv2_jax import bundle, cascade, components, params
from mv2_jax.diffusion import keys

BETWEEN = ({"w": np.ones(300_000, np.float32)}, tiny.RIFE_SIZES)
PROMPT = ["a red ball"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("components") / "tiny", tiny.make())


class Watching:
    """Stands in for compiled programs: notes what lies on the device, and returns zeros."""

    mesh = None

    def __init__(self):
        self.seen = {}
        self._before = {id(x) for x in jax.live_arrays()}

    def live(self):
        """Bytes of arrays that were made since, without the small ones."""
        new = [x for x in jax.live_arrays() if id(x) not in self._before]
        return sum(x.nbytes for x in new)

    def __call__(self, stage, function, *args, progress=None, **static):
        if stage != "vfi":  # the weights that stand in for RIFE's are none
            shapes = jax.eval_shape(lambda *a: function(*a, **static), *args)
        self.seen[stage] = max(self.seen.get(stage, 0), self.live())
        return args[1] if stage == "vfi" else jax.tree.map(_zeros, shapes)


def _zeros(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            jnp.zeros((*leaf.shape, 2), jnp.uint32), impl="threefry2x32"
        )
    return np.zeros(leaf.shape, leaf.dtype)


def run(four):
    """All stages; what lay on the device in each."""
    watching = four.programs
    image = four.t2i(PROMPT, keys=keys.seeds([0]))
    clip = four.i2v(PROMPT, image, keys=keys.seeds([0]))
    clip = four.v2v(PROMPT, image, clip, keys=keys.seeds([0]))
    four.vfi(clip, 1)
    return watching.seen


def watched(folder, **settings):
    watching = Watching()
    four = cascade.load(folder, interpolator=BETWEEN, **settings)
    return dataclasses.replace(four, programs=watching)


def size(four, names):
    """Bytes of some components in fp32, each file once."""
    files = {four.params._files[name]: four.params[name] for name in names}
    return sum(4 * params.count(tree) for tree in files.values())


def test_only_the_running_stages_weights_lie_on_the_device(folder):
    four = watched(folder, resident="stage")
    seen, slack = run(four), 100_000  # frames and latents lie there too
    stages = {name: four._components(name) for name in ("t2i", "i2v", "v2v")}
    wanted = {name: size(four, names) for name, names in stages.items()}
    wanted["vfi"] = BETWEEN[0]["w"].nbytes
    assert min(wanted.values()) > slack
    for name, held in wanted.items():
        assert held <= seen[name] < held + slack, (name, held, seen)
    everything = run(watched(folder))
    whole = size(four, four.params)
    assert min(everything.values()) >= whole > max(wanted.values()) + slack


def test_weights_are_those_of_the_folder_and_can_be_changed(folder):
    four = cascade.load(folder, interpolator=BETWEEN, resident="stage")
    usual = cascade.load(folder, interpolator=BETWEEN)
    assert set(four.params) == set(usual.params)
    for name in four.params:
        jax.tree.map(np.testing.assert_array_equal, four.params[name], usual.params[name])
    other = jax.tree.map(lambda x: 2 * x, usual.params["vae"])
    changed = four.with_params(vae=other)
    components.only(changed.params, [])
    jax.tree.map(np.testing.assert_array_equal, changed.params["vae"], other)
    jax.tree.map(np.testing.assert_array_equal, four.params["vae"], usual.params["vae"])


def test_a_damaged_file_is_found_before_the_first_stage(folder, tmp_path):
    tiny.write(tmp_path / "broken", tiny.make())
    path = tmp_path / "broken" / "motion_v2v.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"motion_v2v\.safetensors is damaged"):
        cascade.load(bundle.read(path.parent), interpolator=BETWEEN, resident="stage")
    with pytest.raises(ValueError, match="resident is all, stage"):
        cascade.load(folder, resident="some")
