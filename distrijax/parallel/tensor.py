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
from distrijax.nn.conv import order_kernels
from distrijax.parallel.options import Parallel
from distrijax.parallel.placement import put
from distrijax.parallel.transport import AXIS

# The axis along which weights are partitioned, input or output channels, by name.
_CUTS = {
    r"attn[12]\.to_[qkv]\.kernel": "O",
    r"attn[12]\.to_out\.kernel": "I",
    r"ff\.proj_in\.(kernel|bias)": "O",
    r"ff\.proj_out\.kernel": "I",
    r"resnets\.\d+\.conv1\.(kernel|bias)": "O",
    r"resnets\.\d+\.time_emb_proj\.(kernel|bias)": "O",
    r"resnets\.\d+\.norm2\.(scale|bias)": "O",
    r"resnets\.\d+\.conv2\.kernel": "I",
}


def spread_weights(unet: UNet, parallel: Parallel) -> UNet:
    """Put the U-Net's weights on the devices, sharded where `patch` divides the size, otherwise replicated."""
    axes = {1: "O", 2: "IO", 4: parallel.kernel_order}

    def place(path: tuple[jax.tree_util.KeyEntry, ...], weight: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        cut = next((axis for pattern, axis in _CUTS.items() if re.search(rf"\.{pattern}$", name)), None)
        sharded = (
            letter == cut and size % parallel.patch == 0
            for letter, size in zip(axes[weight.ndim], weight.shape, strict=True)
        )
        return put(weight, NamedSharding(parallel.mesh, P(*(AXIS if found else None for found in sharded))))

    order_kernels(unet, parallel.kernel_order)
    graph, weights = nnx.split(unet)
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(place, weights))
