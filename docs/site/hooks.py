"""What the site has beside docs/: README as the front page, the changelog, contributing, and a page
of the reference for each package."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
COPIED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
# Packages of the reference, in the order in which they build on one another, and what each is.
REFERENCE = {
    "mv2_jax": "The cascade, configs, weights, sharding",
    "mv2_jax.stages": "T2I, I2V and V2V: what is put together, and the one driver",
    "mv2_jax.stages.conditions": "Conditions, a file each",
    "mv2_jax.diffusion": "Processes, samplers, guidance, losses",
    "mv2_jax.models": "Networks",
    "mv2_jax.nn": "Layers",
    "mv2_jax.text": "Tokenizers and prompts",
    "mv2_jax.toybox": "The procedural world and its judge",
    "mv2_jax.train": "Training",
    "mv2_jax.train.tasks": "What each stage learns from",
    "mv2_jax.train.media": "One's own clips and pictures",
    "mv2_jax.convert": "PyTorch weights, both ways",
    "mv2_jax.infer": "Commands",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    for source, name in COPIED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_moved(text)))
    for package, title in REFERENCE.items():
        content = f"# {package}\n\n{title}.\n\n" + "\n".join(_modules(package))
        files.append(File.generated(config, f"reference/{package}.md", content=content))
    listed = "\n".join(f"- [{name}]({name}.md): {title}" for name, title in REFERENCE.items())
    front = f"# Reference\n\nFrom the docstrings of what is public.\n\n{listed}\n"
    files.append(File.generated(config, "reference/index.md", content=front))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The reference's pages in the navigation."""
    pages: list[Any] = ["reference/index.md", *({n: f"reference/{n}.md"} for n in REFERENCE)]
    config.nav = [
        {"Reference": pages} if "Reference" in part else part for part in config.nav or []
    ]
    return config


def _moved(text: str) -> str:
    """Links of a page of the root, as seen from docs/; to files outside of it none is left."""
    text = re.sub(r"\]\(docs/", "](", text)
    for source, name in COPIED.items():
        text = text.replace(f"]({source})", f"]({name})")
    return text


def _modules(package: str) -> list[str]:
    """A heading and a directive for each module that has something public."""
    made = []
    for path in sorted((ROOT / package.replace(".", "/")).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = (ast.FunctionDef, ast.ClassDef)
        public = [n for n in tree.body if isinstance(n, defined) and not n.name.startswith("_")]
        if path.stem.startswith("_") or not (public and ast.get_docstring(tree)):
            continue
        name = f"{package}.{path.stem}"
        made.append(f"## {path.stem}\n\n::: {name}\n    options:\n      heading_level: 3\n")
    return made
