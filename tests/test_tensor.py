"""The tensor-parallel baseline: weights spread over devices, the same predictions."""

import jax
import pytest
from flax import nnx
from parallel_helpers import predictions, relative, small_unet

from distrijax import Parallel
from distrijax.parallel.tensor import spread_weights


@pytest.mark.parametrize(("cfg", "patch"), [(1, 3), (2, 2)])
def test_equals_one_device(cfg: int, patch: int) -> None:
    """1e-5 as for rows. Where the devices do not divide the channels, as 3 do not divide 8, weights stay whole."""
    parallel = Parallel(cfg=cfg, patch=patch, mode="tensor")
    whole, _ = predictions(small_unet(), Parallel(), (9, 8))
    spread, _ = predictions(spread_weights(small_unet(), parallel), parallel, (9, 8))
    assert relative(spread, whole) < 1e-5


def test_each_device_holds_its_part() -> None:
    parallel = Parallel(patch=4, mode="tensor")
    weights = jax.tree.leaves(nnx.split(spread_weights(small_unet(), parallel))[1])
    cut = [x for x in weights if not x.sharding.is_fully_replicated]
    own, all_of_it = (sum(shard.data.size for x in cut for shard in x.addressable_shards[:n]) for n in (1, 4))
    assert all_of_it == sum(x.size for x in cut) == 4 * own
    # Attention, feed-forward and residual blocks are most of any U-Net.
    assert sum(x.size for x in cut) > 0.5 * sum(x.size for x in weights)
