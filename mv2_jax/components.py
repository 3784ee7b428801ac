"""A cascade folder's components: their configs, and their parameters on devices.

    params = components.load(bundle, jnp.bfloat16)                    # everything, at once
    params = components.load(bundle, jnp.bfloat16, resident="stage")  # read when a stage asks

With "stage" a component is read from its file when it is first asked for, and `Resident.only` drops
what the next stage does not need: no more than one stage's weights lie on the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from mv2_jax import params as trees
from mv2_jax import sharding
from mv2_jax.bundle import PICTURE, Bundle
from mv2_jax.errors import InputError
from mv2_jax.stages import vfi, vfi_table

RESIDENT = ("all", "stage")
INTERPOLATOR = "interpolator"


class Configs:
    """The configs of the networks that a stage takes, by its names for them: T2I's own, where it
    has some. Asking for one that the folder lacks raises InputError."""

    def __init__(self, bundle: Bundle, stage: str) -> None:
        self._bundle, self._pictures = bundle, stage == "t2i"

    def __getitem__(self, name: str) -> Any:
        held = self._bundle.components
        own = PICTURE.get(name) if self._pictures else None
        # T2I with a UNet of its own has its second text encoder with it, or none.
        alone = name == "text_encoder_2" and PICTURE["spatial"] in held
        return self._bundle.config(own if own in held or (own and alone) else name)


class Resident(Mapping[str, Any]):
    """Trees by component, each put on the devices when it is asked for and until it is dropped.

    Args:
        makers: put a component's tree on the devices.
        files: what two names of one file have in common; such a tree lies there once.
    """

    def __init__(
        self, makers: Mapping[str, Callable[[], Any]], files: Mapping[str, str] | None = None
    ) -> None:
        self._makers = dict(makers)
        self._files = {name: (files or {}).get(name, name) for name in makers}
        self._there: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        file = self._files[name]
        if file not in self._there:
            self._there[file] = self._makers[name]()
        return self._there[file]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers  # Mapping's own would read the file

    def only(self, names: Iterable[str]) -> None:
        """Drops all trees but these from the devices."""
        kept = {self._files[name] for name in names}
        self._there = {file: tree for file, tree in self._there.items() if file in kept}

    def changed(self, more: Mapping[str, Any]) -> Resident:
        """These with other trees for some names, or further ones."""
        return self.made_by({name: partial(_itself, tree) for name, tree in more.items()})

    def made_by(self, makers: Mapping[str, Callable[[], Any]]) -> Resident:
        """These with other makers for some names, or further ones."""
        files = {name: file for name, file in self._files.items() if name not in makers}
        return Resident({**self._makers, **makers}, files)


def _itself(tree: Any) -> Any:
    return tree


def changed(params: Mapping[str, Any], more: Mapping[str, Any]) -> Mapping[str, Any]:
    """Trees by component, with others for some of them."""
    return params.changed(more) if isinstance(params, Resident) else {**params, **more}


def made_by(
    params: Mapping[str, Any], makers: Mapping[str, Callable[[], Any]]
) -> Mapping[str, Any]:
    """Trees by component, with others for some of them, which `makers` put on the devices: at once,
    or where trees are held by stages, whenever one is asked for."""
    if isinstance(params, Resident):
        return params.made_by(makers)
    return {**params, **{name: make() for name, make in makers.items()}}


def only(params: Mapping[str, Any], names: Iterable[str]) -> None:
    """Drops the trees that are not asked for from the devices, where they are held by stages."""
    if isinstance(params, Resident):
        params.only(names)


def load(
    bundle: Bundle,
    dtype: Any,
    interpolator: Any,
    *,
    mesh: Mesh | None = None,
    resident: str = "all",
) -> Mapping[str, Any]:
    """Every component's parameters as `dtype`, and under "interpolator" the given tree.

    Raises:
        InputError: a file is missing or damaged.
        ValueError: `resident` is not one of `RESIDENT`.
    """
    if resident not in RESIDENT:
        raise ValueError(f"resident is {', '.join(RESIDENT)}; not {resident!r}")
    own = [name for name in bundle.components if not vfi_table.is_component(name)]
    files = {name: bundle.components[name].sha256 for name in own}
    between = partial(place_interpolator, interpolator, dtype, mesh)
    if resident == "stage":
        verify(bundle, mesh)
        makers = {}
        for name in own:
            rules = bundle.components[name].rules
            makers[name] = partial(placed, stored(bundle, name, True), dtype, mesh, rules)
        return Resident({**makers, INTERPOLATOR: between}, files)
    if mesh is not None:
        verify(bundle, mesh)
    read = bundle.load if mesh is None else partial(stored, bundle)
    held: dict[str, Any] = {}  # by checksum: one file may serve two stages
    for name, file in files.items():
        if file not in held:
            rules = bundle.components[name].rules
            held[file] = placed(read(name), dtype, mesh, rules)
    return {**{name: held[file] for name, file in files.items()}, INTERPOLATOR: between()}


def verify(bundle: Bundle, mesh: Mesh | None) -> None:
    """Compares the files' checksums; processes that share a mesh share the files among them.

    Raises:
        InputError: a file is missing or damaged; where processes share them, in one of them.
    """
    several = mesh is not None
    index, count = (jax.process_index(), jax.process_count()) if several else (0, 1)
    bundle.verify(list(bundle.components)[index::count])


def stored(bundle: Bundle, name: str, keep: bool = False) -> trees.Tree:
    """A component's tree, whose numbers are read where they are asked for (`params.stored`).

    Raises:
        InputError: its file is damaged.
    """
    try:
        return trees.stored(bundle.folder / bundle.components[name].file, keep)
    except (OSError, ValueError) as error:
        raise InputError(f"weights: {error}") from None


def place_interpolator(tree: Any, dtype: Any, mesh: Mesh | None) -> Any:
    """An interpolator's parameters, whole on every device."""
    return sharding.lay_out(trees.cast(tree, dtype), mesh, everywhere=True)


def own_interpolator(bundle: Bundle) -> tuple[Any, vfi_table.Config]:
    """The tree and config of what a folder puts between frames."""
    own = vfi_table.chosen(bundle.components)
    if own is None:
        return vfi.shipped()
    return vfi_table.complete(bundle.load(own), bundle.config(own))


def placed(tree: trees.Tree, dtype: Any, mesh: Mesh | None, rules: Any = ()) -> Any:
    """A component's tree, cast, and on the devices."""
    return sharding.lay_out(trees.cast(tree, dtype), mesh, rules)
