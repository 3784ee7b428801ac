"""Where a source is: a path here, or an id of the model hub, brought here by huggingface_hub.

    runwayml/stable-diffusion-v1-5                   a whole pipeline
    h94/IP-Adapter/models/ip-adapter_sd15.bin        one file of a repository
    h94/IP-Adapter/models/image_encoder              one folder of it

What was fetched before is found in the hub's own cache, without a network too.
"""

from __future__ import annotations

import re
from pathlib import Path

from mv2_jax.convert.sources import PICKLES, STEMS, is_named
from mv2_jax.errors import InputError

_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(/(?P<inside>[\w./-]+))?")
# A pipeline's parts; a repository's root may hold the same weights many times over.
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler", "image_encoder")


def local(source: str, variant: str | None = None) -> Path:
    """The path of a source.

    Args:
        source: a path, or a hub id. What exists here is never looked for elsewhere.
        variant: of a repository that holds several precisions, the one to prefer ("fp16").

    Raises:
        InputError: neither a path that exists nor an id that can be had.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path.absolute()
    match = _ID.fullmatch(source)
    if match is None or path.is_absolute():
        raise InputError(f"there is no {source}")
    try:
        return _fetch(match["repository"], match["inside"], variant)
    except InputError:
        raise
    except ImportError:
        raise InputError(
            f"there is no {source} here; to fetch it from the hub: pip install 'mv2-jax[convert]'"
        ) from None
    except Exception as error:
        # The hub raises dozens of kinds; all of them mean that it is not to be had.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"there is no {source} here, and the hub does not give it ({reason})"
        ) from None


def _fetch(repository: str, inside: str | None, variant: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    if inside and Path(inside).suffix in (".safetensors", *PICKLES):
        return Path(hf_hub_download(repository, inside))
    folders = [inside] if inside else ["", *PARTS]
    # The wanted variant's weights, else the plain ones; without a wanted one where there are none,
    # those of a variant (`sources.load` takes the only one).
    for precision in (variant, None) if variant else (None, "fp16"):
        for suffix in (".safetensors", ".bin"):
            allow, skip = _patterns(folders, precision, suffix)
            root = Path(snapshot_download(repository, allow_patterns=allow, ignore_patterns=skip))
            found = root / (inside or "")
            if _whole(found, at_root=not inside):
                return found
    raise InputError(f"{repository} holds no weights{f' in {inside}' if inside else ''}")


def _whole(folder: Path, at_root: bool) -> bool:
    """Whether there are weights, and in every part of a pipeline that has a config.

    At a repository's root a file that was fetched by its own name (a LoRA, say) is none of them.
    """
    parts = [folder / part for part in PARTS if (folder / part / "config.json").exists()]
    suffixes = (".safetensors", ".bin")
    if at_root and not parts:
        return any(p.suffix in suffixes and is_named(p) for p in folder.glob("*"))
    return all(any(p.suffix in suffixes for p in part.rglob("*")) for part in parts or [folder])


def _patterns(folders: list[str], variant: str | None, suffix: str) -> tuple[list[str], list[str]]:
    """What to fetch of some folders' weights, and what to leave out of that."""
    patterns = [f"{folder}/*.json".lstrip("/") for folder in folders]
    middle = f".{variant}" if variant else ""
    for folder in folders:
        if folder:
            patterns.append(f"{folder}/*{middle}*{suffix}")
            continue
        # At a repository's root only what the libraries name; a star there would match folders too.
        for stem in STEMS:
            patterns.append(f"{stem}{middle}{suffix}")
            patterns += [f"{stem}{middle}-*-of-*{suffix}", f"{stem}-*-of-*{middle}{suffix}"]
    skip = ["*.fp16.*", "*.bf16.*", "*.non_ema.*", "*.fp16-*", "*.non_ema-*"]
    return patterns, [] if variant else skip
