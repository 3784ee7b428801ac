"""Tars, ArrayRecord, TFDS, `datasets` folders and noise hold what a folder holds."""

import io
import json
import sys
import tarfile

import media_clips
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from mv2_jax.errors import InputError
from mv2_jax.train import source as sources
from mv2_jax.train.media import auto
from mv2_jax.train.media.example import build, parse
from mv2_jax.train.media.records import RECORDS
from mv2_jax.train.media.settings import check, data
from mv2_jax.train.media.source import Media


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return media_clips.clips(tmp_path_factory.mktemp("files") / "clips", 3, 2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def held(**settings):
    """{first caption: (the other captions, the middle of it)} of a source."""
    source = Media(data(**settings), 0)
    found = {}
    for number in range(source.length):
        which, own = source.places[number]
        captions = source.parts[which].records.captions(own)
        found[captions[0]] = (tuple(captions[1:]), source.read([number], 2, (32, 32))[0].tolist())
    return found


def tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            file.addfile(info, io.BytesIO(body))


def test_tars(folder, tmp_path):
    files = sorted(folder.iterdir())
    (tmp_path / "tars").mkdir()
    for number, part in enumerate((files[:4], files[4:])):
        path = tmp_path / f"tars/shard-{number:03d}.tar"
        tar(path, [(f"x/{f.name}", f.read_bytes()) for f in part])
    expected = held(root=str(folder))
    for root in ("tars", "tars/shard-{000..001}.tar", "tars/*.tar"):
        assert held(source="tars", root=str(tmp_path / root)) == expected
    one = held(source="tars", root=str(tmp_path / "tars/shard-000.tar"))
    assert one.keys() < expected.keys()
    # Captions as img2dataset writes them, and one of several media.
    body = (folder / "picture0.png").read_bytes()
    made = [("0.png", body), ("0.jpg", body), ("0.json", json.dumps({"caption": "C"}).encode())]
    tar(tmp_path / "one.tar", made)
    assert list(held(source="tars", root=str(tmp_path / "one.tar"), file_key="jpg")) == ["C"]
    (tmp_path / "bad.tar").write_bytes(b"\x1f\x8b not a tar" * 100)
    with pytest.raises(InputError, match=r"bad.tar is no plain tar"):
        held(source="tars", root=str(tmp_path / "bad.tar"))
    with pytest.raises(InputError, match=r"there is no .tar file at"):
        held(source="tars", root=str(tmp_path / "none-{0..3}.tar"))


def test_array_record(folder, tmp_path):
    from mv2_jax.train.media import array_records

    rows = []
    for path in sorted(folder.glob("*.[mp][pn][4g]")):
        lines = path.with_suffix(".txt").read_text().splitlines()
        rows.append(build({"media": path.read_bytes(), "caption": lines, "id": np.array([-7])}))
    array_records.write(str(tmp_path / "a-00000-of-00002.array_record"), rows[:2])
    array_records.write(str(tmp_path / "a-00001-of-00002.array_record"), rows[2:])
    assert held(source="array_record", root=str(tmp_path)) == held(root=str(folder))
    odd = tmp_path / "odd.array_record"
    array_records.write(str(odd), [build({"stuff": b"x", "more": b"y"})])
    with pytest.raises(InputError, match=r"which of stuff, more of .* data.file_key"):
        held(source="array_record", root=str(odd))
    array_records.write(str(odd), [b"\xff\xff no message"])
    with pytest.raises(InputError, match=r"no tf.train.Example"):
        held(source="array_record", root=str(odd))


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.one_of(
            st.lists(st.binary(max_size=300), min_size=1, max_size=3),
            st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4).map(np.array),
            st.lists(st.floats(width=32, allow_nan=False), min_size=1).map(np.float32),
        ),
        max_size=4,
    )
)
def test_examples_come_back(features):
    back = parse(build(features))
    assert back.keys() == features.keys()
    for name, value in features.items():
        assert np.array_equal(back[name], value)


def test_an_example_as_protobuf_writes_it():
    """Two features, from the message's definition worked out by hand."""
    record = bytes.fromhex(
        "0a1d0a0c0a0161" "12070a050a0378" "7a790a0d0a0162" "12081a060a04ac" "020803"
    )  # fmt: skip
    assert parse(record)["a"] == [b"xzy"] and parse(record)["b"].tolist() == [300, 8, 3]


def test_an_example_as_tfds_reads_it():
    """TFDS has the message's own classes, which protobuf's compiler made."""
    pb = pytest.importorskip("tensorflow_datasets.proto.tf_example_generated_pb2")
    features = {"a": [b"xyz", b""], "b": np.array([-1, 2**40]), "c": np.float32([0.5, -3])}
    theirs = pb.Example.FromString(build(features)).features.feature
    assert list(theirs["a"].bytes_list.value) == features["a"]
    assert list(theirs["b"].int64_list.value) == [-1, 2**40]
    assert list(theirs["c"].float_list.value) == [0.5, -3]
    made = pb.Example()
    made.features.feature["n"].int64_list.value.extend([5, -6])
    made.features.feature["w"].bytes_list.value.append(b"words")
    assert parse(made.SerializeToString())["n"].tolist() == [5, -6]
    assert parse(made.SerializeToString())["w"] == [b"words"]


def png(picture):
    """As a file: TFDS encodes no arrays without TensorFlow."""
    Image.fromarray(picture).save(file := io.BytesIO(), "png")
    file.seek(0)
    return file


def test_tfds_by_name_and_by_folder(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    rng = np.random.default_rng(0)
    clips = rng.integers(256, size=(4, 6, 32, 48, 3), dtype=np.uint8)

    class TinyClips(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "clip": tfds.features.Sequence(tfds.features.Image(shape=(32, 48, 3))),
                "words": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["red_dog", "cat"]),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for n, clip in enumerate(clips):
                yield (
                    n,
                    {"clip": [png(frame) for frame in clip], "words": f"words {n}", "label": n % 2},
                )

    builder = TinyClips(data_dir=str(tmp_path / "tfds"), file_format="array_record")
    builder.download_and_prepare()
    where = str(tmp_path / "tfds/tiny_clips/1.0.0")
    for kind, root in (("tfds", "tiny_clips"), ("tfds", where), ("array_record", where)):
        more = {"file_key": "clip"} if kind == "array_record" else {}
        source = Media(data(source=kind, root=root, caption_key="words", **more), 0)
        assert source.length == 4
        for n in range(4):
            which, own = source.places[n]
            (caption,) = source.parts[which].records.captions(own)
            read = source.read([n], 2, (32, 48))[0][0]
            number = int(caption.split()[1])
            # From the middle: of 6 frames, the third and the fourth.
            expected = np.float32(clips[number][2:4]) / 127.5 - 1
            np.testing.assert_array_equal(read, expected)
    labelled = Media(data(source="tfds", root=where, caption_key="label"), 0).examples(4)
    assert sorted(labelled) == ["cat", "cat", "red dog", "red dog"]
    assert "tensorflow" not in sys.modules
    with pytest.raises(InputError, match=r"TFDS has no 'tiny_clisp'"):
        Media(data(source="tfds", root="tiny_clisp"), 0)
    with pytest.raises(InputError, match=r"data.split: .* has no 'tset'"):
        Media(data(source="tfds", root=where, split="tset"), 0)


def test_a_datasets_folder(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = sorted(folder.glob("*.png"))
    rows = {
        "image": [str(p) for p in paths],
        "text": [p.with_suffix(".txt").read_text() for p in paths],
    }
    made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    made.save_to_disk(str(tmp_path / "saved"))
    expected = {k: v for k, v in held(root=str(folder)).items() if k.startswith("picture")}
    assert held(source="datasets", root=str(tmp_path / "saved")) == expected


def test_a_datasets_folder_says_what_to_install(monkeypatch):
    monkeypatch.setattr("mv2_jax.train.needs.there", lambda module: module != "datasets")
    with pytest.raises(InputError, match="pip install datasets"):
        held(source="datasets", root="x")


def test_noise():
    source = Media(data(source="synthetic", root="48x32x9", count=5), 0)
    assert source.length == 5 and source.read([0], 3, (32, 48))[0].shape == (1, 3, 32, 48, 3)
    with pytest.raises(InputError, match="WIDTHxHEIGHTxFRAMES"):
        held(source="synthetic", root="big")


def test_every_kind_is_found_by_its_word():
    from mv2_jax.lookup import find

    for name in RECORDS:
        assert find(name, RECORDS, "data source").records
    with pytest.raises(InputError, match="did you mean 'folder'"):
        Media(check(data(source="foldr", root="x")), 0)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("a.tar", "tars"),
        ("a.array_record-00000-of-00001", "array_record"),
        ("dataset_info.json", "tfds"),
        ("state.json", "datasets"),
        ("a.mp4", "folder"),
    ],
)
def test_what_a_folder_is(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"x")
    assert auto.kind(str(tmp_path)) == kind


def test_records_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_records.py").write_text(
        "from mv2_jax.train.media.synthetic import Synthetic\n\n\n"
        "class Mine(Synthetic):\n"
        "    def captions(self, number):\n"
        "        return [f'mine {number}']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = ConfigDict({"data": data(source="own_records:Mine", root="32x32x9", count=3), "seed": 0})
    assert sources.of(cfg).examples(3) == ["mine 0", "mine 1", "mine 2"]
    cfg.data.mix = ({"source": "synthetic", "root": "48x32x9"}, {"source": "own_records:Mine"})
    assert sources.of(cfg).length == 6
