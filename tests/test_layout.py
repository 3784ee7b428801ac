"""What keeps the tree as it was drawn: packages, directions of imports, sizes of files."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each row may import the rows above it. Within a row, a package or module imports itself only.
ORDER = (
    ("config_types", "config_vfi", "errors", "signals", "startup"),
    ("remote",),
    ("files",),
    ("lookup",),
    ("arguments", "number_kinds"),
    ("numbers",),
    ("config", "tensorfile"),
    ("params",),
    ("sharding",),
    ("compiler",),
    ("programs", "shards"),
    ("exchanges",),
    ("nn", "diffusion", "text"),
    ("models",),
    ("toybox",),
    ("storybox",),
    ("stages",),
    ("bundle",),
    ("components",),
    ("cascade",),
    ("configs", "convert", "train", "infer"),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, row in enumerate(ORDER) for name in row}
# Recipes, trainer, converter and player are one layer, whose packages may use one another.
APPLICATIONS = set(ORDER[-3])


def settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def sources():
    """{module name: path} of every Python file that is installed."""
    found = {}
    for package, folder in settings()["package-dir"].items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path, package="mv2_jax"):
    """Modules of `package` that a file imports anywhere in it, lazily too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith(f"{package}.") or name == package}


def test_every_package_on_disk_is_listed():
    on_disk = {
        name if path.name == "__init__.py" else name.rpartition(".")[0]
        for name, path in sources().items()
    }
    assert sorted(on_disk) == sorted(settings()["packages"])
    for name, path in sources().items():
        assert (path.parent / "__init__.py").exists(), f"{name} is in no package"


def test_imports_run_downwards_only():
    wrong = []
    for name, path in sources().items():
        if name == "mv2_jax":
            assert not imports(path), "importing the package is to cost nothing"
            continue
        mine = name.split(".")[1]
        for target in imports(path):
            other = target.split(".")[1]
            allowed = mine == other or RANK[other] < RANK[mine]
            allowed |= mine in APPLICATIONS and other in APPLICATIONS
            if not allowed:
                wrong.append(f"{name} imports {target}")
    assert not wrong


@pytest.mark.parametrize("package", ["torch", "diffusers", "transformers"])
def test_torch_stays_in_convert(package):
    for name, path in sources().items():
        if not name.startswith("mv2_jax.convert"):
            assert not imports(path, package), name


def test_files_are_short():
    paths = [*sources().values(), *sorted((ROOT / "tests").rglob("*.py"))]
    long = [f"{p.relative_to(ROOT)}: {n}" for p in paths if (n := len(p.open().readlines())) > 400]
    assert not long


def test_a_module_has_one_name_and_one_alias_at_most():
    """The alias is for files in which the module's own name is something else."""
    modules, aliases = sources(), {}
    for path in modules.values():
        for node in ast.walk(ast.parse(path.read_text())):
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                module = f"{node.module}.{alias.name}"
                if module in modules and alias.asname not in (None, alias.name):
                    aliases.setdefault(module, set()).add(alias.asname)
    assert {name: found for name, found in aliases.items() if len(found) > 1} == {}
