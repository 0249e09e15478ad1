"""Moving arrays between the host and the devices of a mesh."""

from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from distrijax.nn.conv import order_kernels
from distrijax.parallel.options import Parallel, manual_axes
from distrijax.parallel.specs import is_spec, keep_axes, spec_of_leaves

M = TypeVar("M", bound=nnx.Module)
T = TypeVar("T")


def sharding_of(spec: PartitionSpec, parallel: Parallel) -> NamedSharding:
    """Return the sharding of an array on the real devices: whole on each one that emulates others."""
    if parallel.emulate:
        return parallel.replicated
    return NamedSharding(parallel.mesh, keep_axes(spec, manual_axes(parallel)))


def place(tree: T, specs: object, parallel: Parallel) -> T:
    """Put host arrays on the devices, each its own part; give shapes the sharding that arrays would get.

    Arrays that are already there stay.

    Args:
        tree: host arrays, the same in all processes, or `jax.ShapeDtypeStruct`s.
        specs: partition specs, a prefix of `tree`.
    """

    def put(spec: PartitionSpec, x: Array | np.ndarray | jax.ShapeDtypeStruct) -> Array | jax.ShapeDtypeStruct:
        sharding = sharding_of(spec, parallel)
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        if isinstance(x, Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(put, spec_of_leaves(specs, tree), tree, is_leaf=is_spec)


def place_model(model: M, parallel: Parallel) -> M:
    """Return a model with its weights replicated on every device; those that are already replicated stay as they are.

    The kernels of convolutions get the order of axes that is fast on these devices, in `model` too.
    """
    order_kernels(model, parallel.kernel_order)
    placed = all(getattr(x, "sharding", None) == parallel.replicated for x in jax.tree.leaves(model))
    return model if placed else put(model, parallel.replicated)


def put(tree: T, sharding: Sharding) -> T:
    """Return arrays, or their shapes, with this sharding."""
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree)):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
    return jax.device_put(tree, sharding)
