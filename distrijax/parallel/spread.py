"""Running a function on every device of the mesh: `shard_map`, or `vmap` where the devices are emulated."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from distrijax.parallel.options import Parallel, manual_axes
from distrijax.parallel.specs import AXES, axes_of, is_spec, keep_axes, spec_of_leaves

Function = Callable[..., Any]

PER_DEVICE = P(AXES)
"""Per-device state: a leading axis of size 1 per device, sharded over all mesh axes."""


def spread(function: Function, parallel: Parallel, in_specs: Sequence[Any], out_specs: Any) -> Function:
    """Return a function of whole arrays that runs `function` on each device's parts.

    Args:
        in_specs: partition specs of each argument along the axes data, cfg and patch, a prefix of its tree.
        out_specs: the same for the result. Specs mean the same for real and for virtual devices.
    """
    if not parallel.emulate:
        specs = tuple(in_specs), out_specs
        in_specs, out_specs = jax.tree.map(lambda spec: keep_axes(spec, manual_axes(parallel)), specs, is_leaf=is_spec)
        return jax.shard_map(
            function, mesh=parallel.mesh, in_specs=in_specs, out_specs=out_specs, axis_names=manual_axes(parallel)
        )
    sizes = dict(zip(AXES, (parallel.data, parallel.cfg, parallel.patch), strict=True))
    # Along an axis of one device nothing is mapped, which would add a dimension: XLA's CPU compiler (jax 0.10.2)
    # silently miscomputes sums of eight-dimensional arrays. The axis only gets its name.
    single, virtual = ([axis for axis in AXES if (sizes[axis] == 1) == alone] for alone in (True, False))

    def emulated(*args: Any) -> Any:
        every = spec_of_leaves(tuple(in_specs), args)
        specs = jax.tree.map(lambda spec: keep_axes(spec, virtual), every, is_leaf=is_spec)
        mapped = function
        for axis in single:
            mapped = _named(mapped, axis)
        for axis in reversed(virtual):
            mapped = jax.vmap(
                mapped,
                in_axes=jax.tree.map(lambda spec: 0 if axis in _names(spec) else None, specs, is_leaf=is_spec),  # noqa: B023
                axis_name=axis,
                axis_size=sizes[axis],
            )
        with jax.sharding.use_abstract_mesh(parallel.mesh.abstract_mesh):
            out = mapped(*jax.tree.map(lambda spec, x: _cut(x, spec, sizes), specs, args, is_leaf=is_spec))
        after = jax.tree.map(lambda spec: keep_axes(spec, virtual), spec_of_leaves(out_specs, out), is_leaf=is_spec)
        whole = jax.tree.map(lambda spec, x: _joined(x, spec, sizes, virtual), after, out, is_leaf=is_spec)
        # Give results the sharding of inputs; otherwise the next call would have other types and compile again.
        return jax.tree.map(lambda x: lax.with_sharding_constraint(x, parallel.replicated), whole)

    return emulated


def _named(function: Function, axis: str) -> Function:
    """Return `function` inside an axis of one device, along which its arguments are not mapped."""
    mapped = jax.vmap(function, in_axes=None, axis_name=axis, axis_size=1)
    return lambda *args: jax.tree.map(lambda x: x[0], mapped(*args))


def _names(spec: P) -> list[str]:
    """Return the mesh axes of `spec`, in mesh order."""
    return sorted((name for names in axes_of(spec) for name in names), key=AXES.index)


def _shape(shape: Sequence[int], spec: P, sizes: dict[str, int]) -> tuple[list[int], list[int]]:
    """Return `shape` with a dimension per mesh axis of `spec`, and the positions of these in mesh order."""
    expanded: list[int] = []
    places: dict[str, int] = {}
    for length, names in zip(shape, axes_of(spec) + [()] * (len(shape) - len(spec)), strict=True):
        for name in names:
            places[name] = len(expanded)
            expanded.append(sizes[name])
        expanded.append(length // prod(sizes[name] for name in names))
    return expanded, [places[name] for name in _names(spec)]


def _cut(x: Array, spec: P, sizes: dict[str, int]) -> Array:
    """Return the parts of `x`, with a leading axis per mesh axis of `spec`."""
    expanded, places = _shape(x.shape, spec, sizes)
    rest = [i for i in range(len(expanded)) if i not in places]
    return x.reshape(expanded).transpose(*places, *rest)


def _joined(x: Array, spec: P, sizes: dict[str, int], virtual: list[str]) -> Array:
    """Return the whole of parts with a leading axis per virtual one; parts are equal along axes that `spec` lacks."""
    x = x[tuple(slice(None) if axis in _names(spec) else 0 for axis in virtual)]
    own = x.shape[len(_names(spec)) :]
    padded = axes_of(spec) + [()] * (len(own) - len(spec))
    whole = [n * prod(sizes[name] for name in names) for n, names in zip(own, padded, strict=True)]
    expanded, places = _shape(whole, spec, sizes)
    rest = [i for i in range(len(expanded)) if i not in places]
    order = [*places, *rest]
    return x.transpose([order.index(i) for i in range(len(order))]).reshape(whole)
