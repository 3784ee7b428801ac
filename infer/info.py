"""`mv2 info`: what is installed, what it runs on, and what the weights are."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator

from mv2_jax import bundle as bundles
from mv2_jax import config, numbers, params, text
from mv2_jax.errors import InputError
from mv2_jax.infer import cache
from mv2_jax.infer.release import version


def command(weights: str | None = None) -> None:
    """Prints it all, after comparing every checksum.

    Raises:
        InputError: the weights are missing or damaged.
    """
    bundle = bundles.read(weights)
    bundle.verify()

    import jax

    devices = ", ".join(f"{device.device_kind} ({device.platform})" for device in jax.devices())
    programs = cache.folder()
    print(f"mv2 {version()}, jax {jax.__version__}, Python {platform.python_version()}")
    print(f"devices: {devices}")
    print(f"compiled programs: {programs} ({_size(cache.size(programs))})")
    print(f"weights: {bundle.name}, in {bundle.folder}; all checksums are right")
    wide = max(map(len, bundle.components))
    for name, component in bundle.components.items():
        count = params.count(bundle.load(name))
        print(
            f"  {name:<{wide}} {count / 1e6:8.2f} M  {_size(component.size):>9}  "
            f"{component.licence}; {component.source}"
        )
    total = sum(component.size for component in bundle.components.values())
    print(f"  {'in all':<{wide}} {'':>10}  {_size(total):>9}")
    for each in getattr(text.from_json(bundle.tokenizer), "embeddings", ()):
        where = f", in {', '.join(each.stages)} alone" if each.stages else ""
        print(f"embedding: {each.name} ({each.vectors} tokens{where})")
    print("stages:")
    for name in bundle.stages:
        print(*_stage(bundle, name), sep="\n")


def _stage(bundle: bundles.Bundle, name: str) -> Iterator[str]:
    """A stage's lines: what is put together, and its numbers by where they come from."""
    stage, stored = bundle.stages[name], bundle.defaults.get(name, {})
    why, own = _idle(bundle, name), dataclasses.asdict(bundle.numbers[name])
    if isinstance(stage, config.StageConfig):
        height, width = stage.size
        frames = "" if stage.frames == 1 else f"{stage.frames} frames of "
        window, overlap = stage.windows
        windows = f", in windows of {window} that share {overlap}" if stage.frames > window else ""
        yield f"  {name}: {frames}{width}x{height}{windows}, sampler {stage.sampler}"
        kind, *fields = config.to_dict(stage.schedule).items()
        yield f"    process: {kind[1]}, " + ", ".join(f"{key} {value}" for key, value in fields)
        given = "" if stage.rule else " (the folder names none)"
        yield f"    guidance rule: {stage.rule or config.USUAL_RULE}{given}"
    else:
        yield f"  {name}: " + (", ".join(f"{key} {value}" for key, value in stage.items()) or "-")
    about = numbers.about(name)
    by_source: dict[str, list[str]] = {"stored": [], "the stage's": [], "usual": []}
    for number, value in own.items():
        source = "stored" if number in stored else "usual"
        if value is None:
            value, source = stage.steps, "the stage's"
        by_source[source].append(f"{number} {about[number].show(value)}")
    for source, listed in by_source.items():
        if listed:
            yield f"    {source}: {', '.join(listed)}"
    for reason in dict.fromkeys(why.values()):
        names = ", ".join(number for number in own if why.get(number) == reason)
        yield f"    without effect: {names} ({reason})"


def _idle(bundle: bundles.Bundle, name: str) -> dict[str, str]:
    """Its numbers that change nothing; none where the folder lacks what the stage needs."""
    from mv2_jax import cascade
    from mv2_jax.stages import idle

    if name not in cascade.HELD:
        return {}
    try:
        why = idle.beside(cascade.stage_of(bundle, name), bundle.numbers[name])
    except InputError:
        return {}
    return {number: reason for number, reason in why.items() if number != "negative"}


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
