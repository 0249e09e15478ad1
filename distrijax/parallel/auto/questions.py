"""What a U-Net asks the exchange in a step, from its configuration alone: tracing SDXL takes seconds."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

from distrijax.config import UNetConfig
from distrijax.models.unet import ROOT

Kind = Literal["halo", "moments", "attention"]


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of a layer (see `distrijax.nn.exchange`).

    Attributes:
        level: number of times that the rows and columns it asks about have been halved.
        channels: of what it asks about.
        out: channels that a convolution makes of them; for other layers the same.
        heads: of an attention.
        halves: a convolution that halves rows and columns.
    """

    kind: Kind
    layer: str
    level: int
    channels: int
    out: int
    heads: int = 1
    halves: bool = False


@dataclasses.dataclass(frozen=True)
class Constants:
    """The numbers of the estimate that are fitted.

    Attributes:
        terms: what each of a question's five terms counts: products, attention, memory, kernels, round trips.
        hidden: by kind of question, kernels that run while a message travels.
    """

    terms: tuple[float, float, float, float, float]
    hidden: Mapping[Kind, float]


def questions(config: UNetConfig) -> Iterator[Question]:
    """Yield the questions of one call of the U-Net, in the order in which it asks them."""
    widths, last = config.block_out_channels, len(config.block_out_channels) - 1
    yield Question("halo", f"{ROOT}.conv_in", 0, config.in_channels, widths[0])
    skips, x = [widths[0]], widths[0]
    for i, kind in enumerate(config.down_block_types):
        depths = config.transformer_layers[i] if kind.startswith("CrossAttn") else None
        inputs = [x] + [widths[i]] * (config.layers_per_block[i] - 1)
        yield from _block(f"{ROOT}.down_blocks.{i}", i, inputs, widths[i], depths, config.attention_heads[i])
        skips += [widths[i]] * (len(inputs) + (i < last))
        x = widths[i]
        if i < last:
            yield Question("halo", f"{ROOT}.down_blocks.{i}.downsamplers.0.conv", i, x, x, halves=True)
    if config.has_mid_block:
        depths = (config.mid_transformer_layers,)
        yield from _block(f"{ROOT}.mid_block", last, [x, x], x, depths, config.attention_heads[-1])
    for i, kind in enumerate(config.up_block_types):
        level, depths = last - i, config.up_transformer_layers[i] if kind.startswith("CrossAttn") else None
        inputs = []
        for _ in range(config.layers_per_block[level] + 1):
            inputs.append(x + skips.pop())
            x = widths[level]
        yield from _block(f"{ROOT}.up_blocks.{i}", level, inputs, x, depths, config.attention_heads[level])
        if i < last:
            yield Question("halo", f"{ROOT}.up_blocks.{i}.upsamplers.0.conv", level - 1, x, x)
    yield Question("moments", f"{ROOT}.conv_norm_out", 0, x, x)
    yield Question("halo", f"{ROOT}.conv_out", 0, x, config.out_channels)


def _block(
    path: str, level: int, inputs: list[int], width: int, depths: tuple[int, ...] | None, heads: int
) -> Iterator[Question]:
    """Yield the questions of residual blocks, each followed by a transformer of `depths` blocks as far as they go."""
    for j, channels in enumerate(inputs):
        resnet = f"{path}.resnets.{j}"
        yield Question("moments", f"{resnet}.norm1", level, channels, channels)
        yield Question("halo", f"{resnet}.conv1", level, channels, width)
        yield Question("moments", f"{resnet}.norm2", level, width, width)
        yield Question("halo", f"{resnet}.conv2", level, width, width)
        if depths is not None and j < len(depths):
            transformer = f"{path}.attentions.{j}"
            yield Question("moments", f"{transformer}.norm", level, width, width)
            for k in range(depths[j]):
                layer = f"{transformer}.transformer_blocks.{k}.attn1"
                yield Question("attention", layer, level, width, width, heads)
