"""`mv2 info`: what is installed, what it runs on, and what the weights are."""

from __future__ import annotations

import platform

from mv2_jax import bundle as bundles
from mv2_jax import config, params
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
    print("stages:")
    for name, stage in bundle.stages.items():
        print(f"  {name:<4} {_stage(stage, bundle.defaults.get(name, {}))}")


def _stage(stage: object, defaults: dict[str, float]) -> str:
    words = [f"{key} {value:g}" for key, value in defaults.items()]
    if isinstance(stage, config.StageConfig):
        height, width = stage.size
        rule = stage.rule or config.USUAL_RULE
        shape = f"{width}x{height}" if stage.frames == 1 else f"{stage.frames} of {width}x{height}"
        words = [shape, f"{stage.steps} steps of {stage.sampler}", f"guidance rule {rule}", *words]
    return ", ".join(words)


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
