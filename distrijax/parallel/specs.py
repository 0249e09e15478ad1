"""Operations on partition specs."""

from collections.abc import Collection
from typing import Any

import jax
from jax.sharding import PartitionSpec

AXES = ("data", "cfg", "patch")
"""The mesh axes: pictures of a batch, guidance branches, and the rows of a picture."""


def axes_of(spec: PartitionSpec) -> list[tuple[str, ...]]:
    """Return the mesh axes that shard each dimension."""
    return [() if entry is None else (entry,) if isinstance(entry, str) else tuple(entry) for entry in spec]


def keep_axes(spec: PartitionSpec, axes: Collection[str]) -> PartitionSpec:
    """Return `spec` without the mesh axes that are not among `axes`."""
    entries = [tuple(name for name in names if name in axes) for names in axes_of(spec)]
    return PartitionSpec(*(names or None for names in entries))


def is_spec(x: object) -> bool:
    """Return whether `x` is a partition spec: a leaf of a tree of specs."""
    return isinstance(x, PartitionSpec)


def spec_of_leaves(specs: Any, tree: Any) -> Any:
    """Return one spec per leaf of `tree`, from `specs`, a prefix of it."""
    return jax.tree.map(lambda spec, part: jax.tree.map(lambda _: spec, part), specs, tree, is_leaf=is_spec)
