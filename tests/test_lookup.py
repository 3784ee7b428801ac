import dataclasses
import json
import math
import subprocess
import sys

import pytest

from mv2_jax import config, lookup
from mv2_jax.errors import InputError

TABLE = {"root": math.sqrt, "log": "math:log", "join": "os.path:join"}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Makes `name.py` importable, with this text in it."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


def find(name, **how):
    return lookup.find(name, TABLE, "formula", **how)


def test_words_and_modules_are_found():
    assert find("root") is math.sqrt and find("log") is math.log
    assert find("math:sin") is math.sin
    assert find("collections:OrderedDict.fromkeys")("ab") == {"a": None, "b": None}
    assert find("log", fits=callable, wants="a function") is math.log


@pytest.mark.parametrize(
    "word, known, said",
    [
        ("blu", ("red", "blue"), "--hue: unknown colour 'blu' (known: red, blue); did you mean"),
        ("xyz", ("red", "blue"), "--hue: unknown colour 'xyz' (known: red, blue)"),
        (None, ("red",), "--hue: unknown colour None (known: red)"),
        ([], {"red": 1}, "--hue: unknown colour [] (known: red)"),
        # Of many words the nearest alone, unless none is near.
        ("word99", [f"word{i}" for i in range(40)], "unknown colour 'word99'; did you mean 'word"),
        ("xyz", [f"word{i}" for i in range(40)], "unknown colour 'xyz' (known: word0, word1, "),
    ],
)
def test_a_word_that_is_not_known_is_answered_with_those_that_are(word, known, said):
    assert lookup.one_of("red", ("red", "blue"), "colour") == "red"
    with pytest.raises(InputError) as error:
        lookup.one_of(word, known, "colour", "--hue")
    assert said in str(error.value) and "\n" not in str(error.value)
    assert ("did you mean" in str(error.value)) == ("did you mean" in said)


def test_names_are_told_back():
    assert lookup.name_of(math.sqrt, TABLE) == "root"
    assert lookup.name_of(math.log, TABLE) == "log"  # a text of the table is not imported for it
    assert lookup.name_of(json.JSONDecoder, TABLE) == "json.decoder:JSONDecoder"
    for lost in (lambda x: x, type("Local", (), {"__qualname__": "f.<locals>.Local"})):
        with pytest.raises(ValueError, match="define it at the top of a module"):
            lookup.name_of(lost)


@pytest.mark.parametrize(
    "name, said",
    [
        ("rot", "unknown formula 'rot' (known: root, log, join); did you mean 'root'?"),
        ("xyzzy", "unknown formula 'xyzzy' (known: root, log, join)"),
        ("math:", "unknown formula 'math:' (known: root, log, join)"),
        (None, "unknown formula None (known: root, log, join)"),
        ("math:sine", "formula 'math:sine': math has no 'sine'; did you mean 'sin'?"),
        (
            "no_such.part:f",
            "formula 'no_such.part:f': there is no module 'no_such'; install it, or set "
            "PYTHONPATH to the folder that holds it",
        ),
        ("math:pi", "formula 'math:pi' is a float, not a function"),
    ],
)
def test_what_cannot_be_found_is_told_in_one_line(name, said):
    with pytest.raises(InputError) as caught:
        find(name, fits=callable, wants="a function")
    assert str(caught.value) == said


def test_a_type_is_asked_for():
    assert find("math:pi", fits=float) == math.pi
    with pytest.raises(InputError, match=r"'math:pi' is a float, not int$"):
        find("math:pi", fits=int)
    with pytest.raises(InputError, match=r"'json:JSONDecoder' is the class JSONDecoder, not dict$"):
        find("json:JSONDecoder", fits=dict)


@pytest.mark.parametrize(
    "text, said",
    [
        ("import not_there_at_all", r"at .*broken.py:1: ModuleNotFoundError: No module named"),
        ("x = 1\ny = x / 0", r"at .*broken.py:2: ZeroDivisionError: division by zero$"),
        ("def f(:", r": SyntaxError: invalid syntax \(broken.py, line 1\)$"),
        ("raise SystemExit('two\\nlines')", r"SystemExit: two lines$"),
    ],
)
def test_errors_of_importing_are_told_in_one_line(module, text, said):
    module("broken", text)
    with pytest.raises(InputError, match=f"^formula 'broken:f': importing broken fails.*{said}"):
        find("broken:f")


def test_a_module_of_the_current_folder_is_not_taken_in_silence(tmp_path, monkeypatch):
    (tmp_path / "lies_here.py").write_text("raise AssertionError('ran')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"it lies in this folder: set PYTHONPATH=\.$"):
        find("lies_here:f")


def test_known_imports_nothing(module):
    module("never_run", "raise AssertionError('ran')")
    assert lookup.known("never_run:f", TABLE, "formula") == "never_run:f"
    assert lookup.known("log", TABLE, "formula") == "log"
    assert "never_run" not in sys.modules


OWN = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Depth:
    channels: tuple = ((1, 2), (3,))
    inner: object = None

@dataclasses.dataclass
class Thawed:
    x: int = 0
"""


def test_configs_from_outside_go_through_json(module):
    import importlib

    own = importlib.import_module(module("own_configs", OWN))
    made = own.Depth(inner=(config.ScheduleConfig(prediction="v"), own.Depth()))
    data = json.loads(json.dumps(config.to_dict(made)))
    assert data["class"] == "own_configs:Depth" and data["inner"][0]["class"] == "ScheduleConfig"
    again = config.from_dict(data)
    assert again == made and hash(again) == hash(made)
    with pytest.raises(ValueError, match="own_configs:Depth has no field 'chanels'; did you mean"):
        config.from_dict({"class": "own_configs:Depth", "chanels": []})
    with pytest.raises(ValueError, match="is the class Thawed, not a frozen dataclass"):
        config.from_dict({"class": "own_configs:Thawed"})
    with pytest.raises(ValueError, match=r"unknown config class 'UnetConfig'.*'UNetConfig'\?"):
        config.from_dict({"class": "UnetConfig"})


def test_configs_of_the_package_keep_their_short_names():
    for name, cls in config.CLASSES.items():
        assert lookup.name_of(cls, config.CLASSES) == name

    @dataclasses.dataclass(frozen=True)
    class Local:
        x: int = 0

    with pytest.raises(ValueError, match="define it at the top of a module"):
        config.to_dict(Local())


SCRIPT = """
import dataclasses
from mv2_jax import config, lookup

@dataclasses.dataclass(frozen=True)
class Own:
    x: int = 3

data = config.to_dict(Own(4))
assert data == {"class": "script:Own", "x": 4}, data
assert config.from_dict(data) == Own(4)
assert type(config.from_dict(data)) is Own
"""
LATER = """
import sys
from mv2_jax import config, lookup
assert config.from_dict({"class": "script:Own", "x": 5}).x == 5
assert "jax" not in sys.modules and "numpy" not in sys.modules
"""


def test_a_script_names_its_own_classes_so_that_others_find_them(tmp_path):
    guarded = SCRIPT.replace("\ndata", "\nif __name__ == '__main__':\n  data").replace(
        "\nassert", "\n  assert"
    )
    (tmp_path / "script.py").write_text(guarded)
    (tmp_path / "later.py").write_text(LATER)
    for name in ("script.py", "later.py"):
        subprocess.run([sys.executable, name], cwd=tmp_path, check=True)
