"""Documents tell the truth: their command lines, the files they name, and the lines of errors."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from mv2_jax import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"^(?: {4}|\t)(.+)$|`([^`\n]+)`", re.M)


def commands(page):
    """Command lines of a page, in blocks and in running text, lines that go on joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for match in CODE.finditer(text):
        line = (match[1] or match[2]).split(" #")[0]
        for part in re.split(r"&&|\|", line):
            words = part.split()
            while words and re.fullmatch(r"[A-Z_]+=\S*|nice|-n|\d+", words[0]):
                words = words[1:]
            if words and words[0] in ("mv2", "python"):
                yield " ".join(words)


@cache
def options(command):
    """The flags that a command's help lists, and what it says."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        cli.main([*command, "--help"])
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", said.getvalue())), said.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_command_lines_name_what_there_is(page):
    wrong = []
    for line in commands(page):
        words = shlex.split(line.replace("'", '"').replace("[", "").replace("]", "")) \
            if line.count('"') % 2 == 0 else line.split()  # fmt: skip
        if words[0] == "python":
            wrong += [line] if not _runs(words[1:]) else []
            continue
        command = words[1:2]
        if not command or not re.fullmatch("[a-z]+", command[0]):
            continue  # `mv2 --help`, `mv2 COMMAND`
        if (
            command[0] in ("bench", "eval", "study")
            and words[2:3]
            and re.fullmatch("[a-z]+", words[2])
        ):
            command = words[1:3] if command[0] != "study" else command
        known, said = options(tuple(command))
        flags = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        wrong += [line] if not said or flags - known - {"--help", "-h"} else []
    assert not wrong


def _runs(words):
    """Whether `python ...` names a module or a script of the repository."""
    if words[:1] == ["-m"]:
        module = words[1].split(".") if len(words) > 1 else [""]
        if module[0] != "mv2_jax":
            return True
        path = ROOT.joinpath(*module)
        return path.with_suffix(".py").is_file() or path.is_dir()
    return not words or not words[0].endswith(".py") or (ROOT / words[0]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_are_named_are_there(page):
    text = page.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [link for link in links if link and "://" not in link]
    names = re.findall(
        r"`((?:mv2_jax|benchmarks|tests|examples|configs|docs)/[\w./-]+\.\w+)`", text
    )
    missing = [link for link in local if not (page.parent / link).exists()]
    made = {"index.md", "changelog.md", "contributing.md"}
    assert [link for link in missing if link not in made] == []
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_lines_of_the_troubleshooting_page_are_said_somewhere():
    said = "".join(" ".join(map(str, _texts(path))) for path in _sources())
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1] for row in page.splitlines() if row.startswith("| ") and "`" in row]
    wrong = []
    for quoted in (code for row in rows for code in re.findall(r"`([^`]+)`", row)):
        parts = re.split(
            r"\.\.\.|\b(?:DIR|N|FILE|cascade\.json)\b|\d |the thing|\"[^\"]+\"|--\w+|'[^']+'",
            quoted,
        )
        wrong += [p for p in map(str.strip, parts) if len(p) > 12 and p.strip(" ();:") not in said]
    assert not wrong


def _sources():
    """The package's files, each once: a checkout's mv2_jax/ has links to the other folders."""
    for folder in ("mv2_jax", "infer", "convert", "train"):
        yield from (path for path in (ROOT / folder).rglob("*.py") if not path.is_symlink())


def _texts(path):
    """Texts of a file, those that stand side by side as one, with a blank for what is put in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(v.value if isinstance(v, ast.Constant) else " " for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
