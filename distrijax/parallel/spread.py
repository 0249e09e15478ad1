"""Running a function on every device of the mesh: `shard_map`, or `vmap` where the devices are emulated."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from distrijax.parallel.mesh import AXES, Parallel, axes_of, cut, is_spec, spec_of_leaves

Function = Callable[..., Any]

OWN = P(AXES)
"""Of arrays that are nobody else's business: each device's lies at its place along a first axis of length 1."""


def spread(function: Function, parallel: Parallel, in_specs: Sequence[Any], out_specs: Any) -> Function:
    """`function` of each device's parts, as a function of whole arrays.

    Args:
        in_specs, out_specs: a `PartitionSpec` for each argument and result, or for each part of one (prefixes of their
            trees), over the axes data, cfg and patch. They say how arrays are cut, on real or virtual devices alike.
    """
    if not parallel.emulate:
        specs = tuple(in_specs), out_specs
        in_specs, out_specs = jax.tree.map(lambda spec: cut(spec, parallel.manual_axes), specs, is_leaf=is_spec)
        return jax.shard_map(
            function, mesh=parallel.mesh, in_specs=in_specs, out_specs=out_specs, axis_names=parallel.manual_axes
        )
    sizes = dict(zip(AXES, (parallel.data, parallel.cfg, parallel.patch), strict=True))
    # Axes of one device need no `vmap`, which would add a dimension: XLA's CPU compiler (jax 0.10.2) sums arrays of
    # eight dimensions wrongly, without a word.
    real, virtual = ([axis for axis in AXES if (sizes[axis] == 1) == alone] for alone in (True, False))
    one = Mesh(parallel.mesh.devices.reshape([1] * len(real)), real, axis_types=(AxisType.Auto,) * len(real))

    def emulated(*args: Any) -> Any:
        specs = jax.tree.map(lambda spec: cut(spec, virtual), spec_of_leaves(tuple(in_specs), args), is_leaf=is_spec)
        mapped = function
        if real:
            mapped = jax.shard_map(function, mesh=one, in_specs=P(), out_specs=P(), check_vma=False)
        for axis in reversed(virtual):
            mapped = jax.vmap(
                mapped,
                in_axes=jax.tree.map(lambda spec: 0 if axis in _names(spec) else None, specs, is_leaf=is_spec),  # noqa: B023
                axis_name=axis,
                axis_size=sizes[axis],
            )
        out = mapped(*jax.tree.map(lambda spec, x: _cut(x, spec, sizes), specs, args, is_leaf=is_spec))
        after = jax.tree.map(lambda spec: cut(spec, virtual), spec_of_leaves(out_specs, out), is_leaf=is_spec)
        joined = jax.tree.map(lambda spec, x: _joined(x, spec, sizes, virtual), after, out, is_leaf=is_spec)
        # Placed as the inputs are: else the next call of the same program would be one of other types, and compile.
        return jax.tree.map(lambda x: lax.with_sharding_constraint(x, parallel.replicated), joined)

    return emulated


def _names(spec: P) -> list[str]:
    """The mesh axes that cut anything, in the order of the mesh."""
    return sorted((name for names in axes_of(spec) for name in names), key=AXES.index)


def _shape(shape: Sequence[int], spec: P, sizes: dict[str, int]) -> tuple[list[int], list[int]]:
    """Of an array cut by `spec`: its shape with a dimension for each mesh axis, and where those are in mesh order."""
    expanded: list[int] = []
    places: dict[str, int] = {}
    for length, names in zip(shape, axes_of(spec) + [()] * (len(shape) - len(spec)), strict=True):
        for name in names:
            places[name] = len(expanded)
            expanded.append(sizes[name])
        expanded.append(length // prod(sizes[name] for name in names))
    return expanded, [places[name] for name in _names(spec)]


def _cut(x: Array, spec: P, sizes: dict[str, int]) -> Array:
    """The parts of `x`: a leading axis for each mesh axis of `spec`."""
    expanded, places = _shape(x.shape, spec, sizes)
    rest = [i for i in range(len(expanded)) if i not in places]
    return x.reshape(expanded).transpose(*places, *rest)


def _joined(x: Array, spec: P, sizes: dict[str, int], virtual: list[str]) -> Array:
    """The whole of parts with a leading axis for every virtual one; where `spec` lacks it, all parts are the same."""
    x = x[tuple(slice(None) if axis in _names(spec) else 0 for axis in virtual)]
    own = x.shape[len(_names(spec)) :]
    padded = axes_of(spec) + [()] * (len(own) - len(spec))
    whole = [n * prod(sizes[name] for name in names) for n, names in zip(own, padded, strict=True)]
    expanded, places = _shape(whole, spec, sizes)
    rest = [i for i in range(len(expanded)) if i not in places]
    order = [*places, *rest]
    return x.transpose([order.index(i) for i in range(len(order))]).reshape(whole)
