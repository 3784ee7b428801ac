"""Which files of a repository of the model hub are fetched, from the names that such ones have."""

import pytest

from mv2_jax.convert import hub, sources
from mv2_jax.errors import InputError

huggingface_hub = pytest.importorskip("huggingface_hub")

MODEL, WEIGHTS = "model", "diffusion_pytorch_model"


def names(*, plain=True, half=True, kinds=("safetensors", "bin")):
    """A pipeline's: of each part a config and weights, and much that nobody wants."""
    found = ["model_index.json", "v1-5-pruned.ckpt", "v1-5-pruned-emaonly.safetensors"]
    found += ["safety_checker/config.json", "safety_checker/model.safetensors"]
    found += ["scheduler/scheduler_config.json", "unet/model.onnx", f"unet/{WEIGHTS}.non_ema.bin"]
    for part, stem in (("unet", WEIGHTS), ("vae", WEIGHTS), ("text_encoder", MODEL)):
        found.append(f"{part}/config.json")
        for kind in kinds:
            stem = "pytorch_model" if (kind, stem) == ("bin", MODEL) else stem
            found += [f"{part}/{stem}.{kind}"] * plain + [f"{part}/{stem}.fp16.{kind}"] * half
    return found


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Sets what the hub holds; what is fetched of it then lies in a folder."""
    held = []

    def fetch(repository, allow_patterns, ignore_patterns):
        chosen = huggingface_hub.utils.filter_repo_objects(
            held, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        root = tmp_path / "hub" / repository
        for name in chosen:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        return root

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)

    def set_to(*names):
        held[:] = names

    return set_to


def fetched(variant=None, asked="someone/thing"):
    """The weights that were fetched, and those that a part's folder gives of them."""
    root = hub.local(asked, variant)
    weights = {str(p.relative_to(root)) for p in root.rglob("*") if p.suffix not in ("", ".json")}
    parts = [root / part for part in hub.PARTS if (root / part / "config.json").exists()]
    used = {str(p.relative_to(root)) for part in parts for p in sources.paths(part, variant)}
    return weights, used


@pytest.mark.parametrize(
    "held, variant, expected",
    [
        ({}, None, "{}.safetensors"),
        ({}, "fp16", "{}.fp16.safetensors"),
        ({"kinds": ["bin"]}, None, "{}.bin"),
        ({"kinds": ["bin"]}, "fp16", "{}.fp16.bin"),
        ({"plain": False}, None, "{}.fp16.safetensors"),
    ],
)
def test_of_a_pipeline_one_precision_of_its_parts(repository, held, variant, expected):
    repository(*names(**held))
    weights, used = fetched(variant)
    text = "pytorch_model" if ".bin" in expected else MODEL
    stems = [f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", f"text_encoder/{text}"]
    assert weights == used == {expected.format(stem) for stem in stems}


def test_a_part_without_safetensors_comes_as_a_pickle(repository):
    repository(*(name for name in names(half=False) if name != f"vae/{WEIGHTS}.safetensors"))
    _, used = fetched()
    unet, text = f"unet/{WEIGHTS}.safetensors", f"text_encoder/{MODEL}.safetensors"
    assert used == {unet, f"vae/{WEIGHTS}.bin", text}


def test_a_network_at_the_root_and_one_in_a_folder(repository):
    shards = [f"{WEIGHTS}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = f"{WEIGHTS}.safetensors.index.json"
    folder = ["models/config.json", "models/model.safetensors"]
    repository("config.json", index, *shards, "images/a.png", "control.safetensors", *folder)
    assert fetched()[0] == {*shards}
    assert fetched(asked="someone/thing/models")[0] == {"model.safetensors"}
    repository("README.md", "a.ckpt")
    with pytest.raises(InputError, match="someone/nothing holds no weights"):
        hub.local("someone/nothing", "fp16")


def test_a_file_fetched_alone_is_not_the_repository_s_network(repository, tmp_path):
    """AnimateLCM's repository holds its modules in one precision and a LoRA beside them."""
    repository("config.json", f"{WEIGHTS}.fp16.safetensors", "lora.safetensors")
    root = tmp_path / "hub" / "someone/thing"
    root.mkdir(parents=True)
    (root / "lora.safetensors").touch()  # as an earlier --lora someone/thing/lora.safetensors left
    here = hub.local("someone/thing")
    assert [path.name for path in sources.paths(here)] == [f"{WEIGHTS}.fp16.safetensors"]
