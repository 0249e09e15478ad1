"""Tensor parallelism, a baseline: the U-Net's weights are sharded over the patch axis, and every device has all rows.

The compiler (GSPMD) partitions the arithmetic accordingly and adds the all-reduces. As in Megatron-LM (arXiv
1909.08053), layers are partitioned in pairs with one all-reduce each: attention by heads, the feed-forward and the
residual blocks by their inner channels.
"""

import re

import jax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from distrijax.models.unet import UNet
from distrijax.parallel.options import Parallel
from distrijax.parallel.transport import AXIS

# How weights are partitioned, by name. Kernels of linear layers are [I, O], those of convolutions [O, h, w, I].
_CUTS = {
    r"attn[12]\.to_[qkv]\.kernel": P(None, AXIS),
    r"attn[12]\.to_out\.kernel": P(AXIS),
    r"ff\.proj_in\.kernel": P(None, AXIS),
    r"ff\.proj_in\.bias": P(AXIS),
    r"ff\.proj_out\.kernel": P(AXIS),
    r"resnets\.\d+\.conv1\.(kernel|bias)": P(AXIS),
    r"resnets\.\d+\.time_emb_proj\.kernel": P(None, AXIS),
    r"resnets\.\d+\.time_emb_proj\.bias": P(AXIS),
    r"resnets\.\d+\.norm2\.(scale|bias)": P(AXIS),
    r"resnets\.\d+\.conv2\.kernel": P(None, None, None, AXIS),
}


def spread_weights(unet: UNet, parallel: Parallel) -> UNet:
    """Put the U-Net's weights on the devices, sharded where `patch` divides the size, otherwise replicated."""

    def place(path: tuple[jax.tree_util.KeyEntry, ...], weight: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        cut = next((cut for pattern, cut in _CUTS.items() if re.search(rf"\.{pattern}$", name)), P())
        fits = all(size % parallel.patch == 0 for size, axis in zip(weight.shape, cut, strict=False) if axis == AXIS)
        return jax.device_put(weight, NamedSharding(parallel.mesh, cut if fits else P()))

    graph, weights = nnx.split(unet)
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(place, weights))
