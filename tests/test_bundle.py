import dataclasses
import json

import numpy as np
import pytest

from mv2_jax import bundle, params
from mv2_jax.config import ControlNetConfig, MotionConfig, ScheduleConfig, StageConfig, UNetConfig
from mv2_jax.errors import InputError

UNET = UNetConfig(channels=(8, 16), transformers=(1, 0), heads=(1, 1), motion=MotionConfig())
STAGE = StageConfig(unet=UNET, schedule=ScheduleConfig(prediction="v"), size=(64, 64), frames=8)


def tree(seed, size=16):
    rng = np.random.default_rng(seed)
    return {"conv": {"kernel": rng.normal(size=size).astype(np.float32)}}


def parts():
    over = params.digest(params.cast(tree(0), np.float16))
    return {
        "spatial": bundle.Part(tree(0), UNET, "Apache-2.0", "trained here"),
        "motion_i2v": bundle.Part(tree(1), MotionConfig(), "Apache-2.0", "trained here", over),
        "control": bundle.Part(tree(2), ControlNetConfig(unet=UNET), "MIT", "elsewhere", over),
    }


def make(folder, **kwargs):
    tokenizer = {"class": "WordTokenizer", "words": ["ball"], "max_length": 8}
    defaults = {"i2v": {"guidance": 3.5}, "vfi": {"between": 2}}
    options = {"name": "tiny", "defaults": defaults, **kwargs}
    return bundle.write(folder, parts(), {"i2v": STAGE, "v2v": STAGE}, tokenizer, **options)


@pytest.fixture
def folder(tmp_path):
    make(tmp_path / "w", texts={"LICENCE-control.txt": "MIT"})
    return tmp_path / "w"


def edit(folder, change):
    path = folder / bundle.INDEX
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def refused(folder):
    with pytest.raises(InputError) as error:
        bundle.read(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_written_is_read_back(folder):
    read = bundle.read(folder)
    assert read.name == "tiny"
    assert list(read.components) == ["spatial", "motion_i2v", "control"]
    assert read.config("control") == ControlNetConfig(unet=UNET)
    assert read.components["control"].licence == "MIT"
    named = dataclasses.replace(STAGE, rule="apart")
    assert read.stages == {"i2v": named, "v2v": named}
    assert read.defaults["i2v"] == {"guidance": 3.5}
    assert read.tokenizer["words"] == ["ball"]
    assert (folder / "LICENCE-control.txt").read_text() == "MIT"
    loaded = read.load("spatial")["conv"]["kernel"]
    assert loaded.dtype == np.float16
    np.testing.assert_array_equal(loaded, tree(0)["conv"]["kernel"].astype(np.float16))
    assert read.spatial == params.digest(read.load("spatial"))
    read.verify()


def test_components_are_read_when_asked_for(folder, monkeypatch):
    read = bundle.read(folder)
    asked = []
    load = params.load
    monkeypatch.setattr(params, "load", lambda path: asked.append(path.name) or load(path))
    assert not asked
    read.load("control")
    assert asked == ["control.safetensors"]


def test_digest_follows_weights_and_configs_only(tmp_path):
    first = make(tmp_path / "a")
    assert make(tmp_path / "b", name="other", texts={"x": "y"}).digest == first.digest
    changed = {**parts(), "motion_i2v": dataclasses.replace(parts()["motion_i2v"], tree=tree(9))}
    other = bundle.write(tmp_path / "c", changed, first.stages, first.tokenizer, name="tiny")
    assert other.digest != first.digest


def test_a_folder_is_replaced_only_when_asked(folder):
    with pytest.raises(InputError, match="already exists"):
        make(folder)
    (folder / "stale").touch()
    make(folder, replace=True)
    assert not (folder / "stale").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["w"]


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(InputError, match="already exists"):
        make(tmp_path / "photos", replace=True)
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_a_failed_write_leaves_nothing(tmp_path):
    bad = {
        **parts(),
        "control": dataclasses.replace(parts()["control"], tree={"w": np.ones(2) * 1e6}),
    }
    with pytest.raises(InputError, match="control: w has numbers that float16 cannot hold"):
        bundle.write(tmp_path / "w", bad, {}, None, name="tiny")
    assert not list(tmp_path.iterdir())


def test_other_spatial_weights_are_refused(tmp_path):
    moved = {**parts(), "spatial": dataclasses.replace(parts()["spatial"], tree=tree(5))}
    with pytest.raises(InputError, match="motion_i2v was trained over other spatial weights"):
        bundle.write(tmp_path / "w", moved, {}, None, name="tiny")


def test_missing_and_damaged_files_are_named(folder, tmp_path):
    assert "there is no cascade.json" in refused(tmp_path / "nowhere")
    read = bundle.read(folder)
    path = folder / "control.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"control\.safetensors is damaged: its checksum"):
        read.load("control")
    with pytest.raises(InputError, match="checksum"):
        read.verify()
    read.verify(["spatial"])
    path.write_bytes(content[:-5])
    assert "is damaged" in refused(folder)
    path.unlink()
    assert "control.safetensors is missing" in refused(folder)


def test_an_absent_component_is_named(folder):
    with pytest.raises(InputError, match="no component 'rife'; it holds spatial, motion_i2v"):
        bundle.read(folder).load("rife")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i: i.update(componets={}), "did you mean 'components'?"),
        (lambda i: i.pop("tokenizer"), "key 'tokenizer' is missing"),
        (lambda i: i.update(schema=99), "has schema 99; this version of mv2 reads 1"),
        (
            lambda i: i["components"].update(spacial=i["components"].pop("control")),
            "unknown component 'spacial'; did you mean 'spatial'?",
        ),
        (lambda i: i["components"]["control"].update(shasum=1), "did you mean 'sha256'?"),
        (lambda i: i["components"]["control"].pop("file"), "control: key 'file' is missing"),
        (lambda i: i["components"]["control"].update(file="../x"), "not a file name within"),
        (
            lambda i: i["components"]["control"]["config"].update({"class": "ControlNetConfg"}),
            "did you mean 'ControlNetConfig'?",
        ),
        (lambda i: i["stages"]["i2v"].update(stepz=3), "did you mean 'steps'?"),
        (lambda i: i["stages"]["i2v"].pop("unet"), "unet"),
        (lambda i: i["stages"].update(v2i=i["stages"].pop("v2v")), "unknown stage 'v2i'"),
        (lambda i: i.update(components=[]), "cascade.json"),
        (lambda i: i["components"].update(control=3), "cascade.json"),
    ],
)
def test_a_wrong_index_gets_one_clear_line(folder, change, message):
    edit(folder, change)
    assert message in refused(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_broken_index_gets_one_clear_line(folder, text):
    (folder / bundle.INDEX).write_text(text)
    assert "cascade.json is damaged" in refused(folder)


def test_a_folder_names_its_guidance_rule_and_one_that_does_not_has_the_first(folder):
    index = json.loads((folder / bundle.INDEX).read_text())
    assert [stage["rule"] for stage in index["stages"].values()] == ["apart", "apart"]
    named = bundle.read(folder)
    edit(folder, lambda i: [stage.pop("rule") for stage in i["stages"].values()])
    silent = bundle.read(folder)
    assert silent.stages["i2v"].rule is None and silent.digest == named.digest
    edit(folder, lambda i: i["stages"]["i2v"].update(rule="public"))
    assert bundle.read(folder).stages["i2v"].rule == "public" != named.stages["i2v"].rule
    assert bundle.read(folder).digest != named.digest
