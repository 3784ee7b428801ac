"""The ComfyUI nodes of examples/comfyui, without ComfyUI, on a server over HTTP."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples/comfyui"


@pytest.fixture(scope="module")
def nodes():
    """Imported as ComfyUI imports a folder of custom_nodes: by path, under a name with dots."""
    name = "custom_nodes.mv2"
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for loaded in [key for key in sys.modules if key.startswith(name)]:
        del sys.modules[loaded]


@pytest.fixture
def comfy(monkeypatch):
    """What the nodes use of ComfyUI: a progress bar, and Cancel."""
    seen = types.SimpleNamespace(progress=[], cancelled=False)

    class Interrupted(BaseException):
        pass

    class ProgressBar:
        def __init__(self, total):
            assert total == 100

        def update_absolute(self, value, total=None):
            seen.progress.append(value)

    def throw_exception_if_processing_interrupted():
        if seen.cancelled:
            raise Interrupted

    seen.Interrupted = Interrupted
    package = types.ModuleType("comfy")
    management, utils = types.ModuleType("comfy.model_management"), types.ModuleType("comfy.utils")
    management.throw_exception_if_processing_interrupted = throw_exception_if_processing_interrupted
    utils.ProgressBar = ProgressBar
    package.model_management, package.utils = management, utils
    for module in (package, management, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen


def generate(nodes, live, **inputs):
    node = nodes.NODE_CLASS_MAPPINGS["MV2Generate"]()
    return getattr(node, node.FUNCTION)(prompt="a red ball", seed=3, server=live, **inputs)


def test_the_nodes_inputs_are_their_functions_arguments(nodes):
    import inspect

    for node in nodes.NODE_CLASS_MAPPINGS.values():
        said = node.INPUT_TYPES()
        names = [*said["required"], *said.get("optional", {})]
        given = list(inspect.signature(getattr(node, node.FUNCTION)).parameters)[1:]
        assert sorted(names) == sorted(given)
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()


def test_a_prompt_becomes_frames(nodes, live, comfy):
    frames, fps, name = generate(nodes, live, frames=9, options='{"v2v_strength": 0.4}')
    assert frames.shape == (9, 32, 32, 3) and frames.dtype == torch.float32
    assert 0 <= frames.min() and frames.max() <= 1 and frames.std() > 0
    assert fps == 8 and name.startswith("video_") and comfy.progress


def test_a_picture_and_a_clip_start_a_video(nodes, live, served):
    names = [
        generate(nodes, live, image=torch.rand(1, 40, 50, 3))[2],
        generate(nodes, live, image=torch.rand(5, 31, 33, 4), fps=6.0)[2],
    ]
    sides = [served.get(name, "/content?variant=sidecar").json() for name in names]
    assert [bool(side["from_image"]) for side in sides] == [True, False]
    assert sides[1]["from_video"]


def test_the_pixels_that_are_sent_are_the_given_ones(nodes):
    client = sys.modules["custom_nodes.mv2.client"]
    for shape in ((1, 7, 9, 3), (4, 6, 10, 3), (3, 7, 9, 3)):
        sent = nodes._pixels(torch.rand(shape))
        got, fps = client._decoded(client._encoded(sent, 12.5)[1])
        assert (got == sent).all() and (len(sent) == 1 or fps == 12.5)


def test_interpolation_makes_more_frames(nodes, live):
    node = nodes.NODE_CLASS_MAPPINGS["MV2Interpolate"]()
    clip = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 32, 48, 3)
    frames, fps, _ = node.run(clip, 8.0, 2, server=live)
    assert frames.shape == (7, 32, 48, 3) and fps == pytest.approx(16, abs=0.1)
    with pytest.raises(RuntimeError, match="two frames or more"):
        node.run(clip[:1], 8.0, 2, server=live)


def test_cancelling_deletes_the_video(nodes, live, served, comfy):
    comfy.cancelled = True
    with pytest.raises(comfy.Interrupted):
        generate(nodes, live)
    assert served.store.page(None, 9, False)[0] == []


@pytest.mark.parametrize("inputs, line", [
    ({"options": "{"}, "write a JSON object"),
    ({"options": '{"v2v_strenght": 1}'}, "v2v_strength"),
    ({"width": 64}, "both width and height"),
    ({"steps": 1001}, "1 to 1000"),
])  # fmt: skip
def test_what_is_wrong_is_one_line(nodes, live, inputs, line):
    with pytest.raises(RuntimeError, match=line) as failed:
        generate(nodes, live, **inputs)
    assert "\n" not in str(failed.value)


def test_no_server(nodes):
    with pytest.raises(RuntimeError, match="is mv2 serve running"):
        generate(nodes, "http://127.0.0.1:9")
    with pytest.raises(RuntimeError, match="cannot be reached"):
        generate(nodes, "nonsense")
