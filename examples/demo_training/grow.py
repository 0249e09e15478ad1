"""Put the weights of a U-Net into one with more layers a block, which computes the same until it is trained further."""

import jax.numpy as jnp

from demo_training.common import Tree, assign, zero_residual_branches
from distrijax.models.unet import DownBlock, UNet, UpBlock


def assign_smaller(unet: UNet, tree: Tree) -> None:
    """Set the weights of `unet` to those of a U-Net with as many layers a block or fewer; extra layers are identities.

    In a block of the downward path the extra layers are the last. In one of the upward path they follow the first: the
    first takes its input from a block of another width, and so does the last, by its skip connection.

    Raises:
        SystemExit: `tree` has more layers in a block than `unet`.
    """
    layers = [len(block["resnets"]) for _, block in sorted(tree["down_blocks"].items())]
    target = list(unet.config.layers_per_block)
    if any(new < old for new, old in zip(target, layers, strict=True)):
        raise SystemExit(f"the checkpoint has {layers} layers a block, the U-Net to train only {target}")
    zero_residual_branches(unet)
    renamed = dict(tree)
    for side in ("down_blocks", "up_blocks"):
        renamed[side] = {index: _insert(block, getattr(unet, side)[int(index)]) for index, block in tree[side].items()}
    assign(unet, renamed, partial=True)


def _insert(tree: Tree, block: DownBlock | UpBlock) -> Tree:
    """Renumber the layers of a smaller block to make room for the extra ones, and make those identities."""
    count = len(tree["resnets"])
    extra = len(block.resnets) - count
    first = count if isinstance(block, DownBlock) else 1
    for layer in block.resnets[first : first + extra]:
        if (shortcut := layer.conv_shortcut) is not None:  # of its two inputs, it passes on the first
            outputs, _, _, inputs = shortcut.kernel.shape
            shortcut.kernel[...] = jnp.eye(outputs, inputs)[:, None, None, :]
    moved = {
        name: {str(int(j) + extra * (int(j) >= first)): layer for j, layer in tree[name].items()}
        for name in ("resnets", "attentions")
        if name in tree
    }
    return tree | moved
