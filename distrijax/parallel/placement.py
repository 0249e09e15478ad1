"""Moving arrays between the host and the devices of a mesh."""

from typing import TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from distrijax.parallel.options import Parallel
from distrijax.parallel.specs import is_spec, keep_axes, spec_of_leaves

T = TypeVar("T")


def place(tree: T, specs: object, parallel: Parallel) -> T:
    """Put host arrays on the devices, each its own part; give shapes the sharding that arrays would get.

    Args:
        tree: host arrays, the same in all processes, or `jax.ShapeDtypeStruct`s.
        specs: partition specs, a prefix of `tree`.
    """

    def put(spec: PartitionSpec, x: Array | np.ndarray | jax.ShapeDtypeStruct) -> Array | jax.ShapeDtypeStruct:
        sharding = parallel.replicated
        if not parallel.emulate:
            sharding = NamedSharding(parallel.mesh, keep_axes(spec, parallel.manual_axes))
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(put, spec_of_leaves(specs, tree), tree, is_leaf=is_spec)


def replicate(tree: T, parallel: Parallel) -> T:
    """Replicate arrays on every device; those that are already replicated stay as they are."""
    return jax.device_put(tree, parallel.replicated)
