"""Weights of a U-Net put into one with more layers a block, which computes the same until it is trained further."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from demo_training import common
from demo_training.configs import unet_config
from distrijax.models.unet import UNet
from distrijax.nn.build import set_paths


def fill(unet: UNet, tree: Any) -> None:
    """Give `unet` the weights `tree` of a U-Net of as many layers a block or fewer; added layers pass on their input.

    In a block that goes down the added layers are the last. In one that goes up they come after the first: that one
    takes the step from another width, and the last takes what the block before put down.
    """
    layers = [len(block["resnets"]) for _, block in sorted(tree["down_blocks"].items())]
    wanted = list(unet.config.layers_per_block)
    if any(now < before for now, before in zip(wanted, layers, strict=True)):
        raise SystemExit(f"the checkpoint has {layers} layers a block, the U-Net to train only {wanted}")
    small = UNet(unet_config(layers), rngs=nnx.Rngs(0))
    common.fill(small, tree)
    common.quiet_residuals(unet)
    for side in ("down_blocks", "up_blocks"):
        for old, new in zip(getattr(small, side), getattr(unet, side), strict=True):
            added = len(new.resnets) - len(old.resnets)
            tail = len(old.resnets) if side == "down_blocks" else 1  # from here on they move behind the added ones
            for layer in new.resnets[tail : tail + added]:
                if (shortcut := layer.conv_shortcut) is not None:  # of its two inputs it passes on the first
                    shortcut.kernel[...] = jnp.eye(*shortcut.kernel.shape[::3])[:, None, None, :]
            for name in ("resnets", "attentions"):
                for j, layer in enumerate(getattr(old, name)):
                    getattr(new, name)[j + added * (j >= tail)] = layer
            new.downsamplers, new.upsamplers = old.downsamplers, old.upsamplers
    for name in ("conv_in", "time_embedding", "add_embedding", "mid_block", "conv_norm_out", "conv_out"):
        setattr(unet, name, getattr(small, name))
    set_paths(unet)
