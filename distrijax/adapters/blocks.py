"""Weights of an adapter by part of the pipeline and by block of the U-Net, as diffusers reads them."""

from collections.abc import Mapping
from typing import TypeAlias

from distrijax.checks import finite_number
from distrijax.config import UNetConfig
from distrijax.errors import DistrijaxError

Weight: TypeAlias = float | Mapping[str, object]
"""A number, or a dictionary by component, in which the U-Net's may be one by block, or one by block of the U-Net."""

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
SIDES = ("down", "mid", "up")
ByLayer = dict[str, float]  # the weight of each transformer, by the start of its layers' names


def weights_of(name: str, weight: object, unet: UNetConfig) -> dict[str, float | ByLayer]:
    """Return the weight of each component: a number, or a dictionary by layer for the U-Net.

    Args:
        name: of the argument, for messages.
        weight: None, a number, `{"unet": ..., "text_encoder": ...}` or `{"down": ..., "mid": ..., "up": ...}`.
    """
    if not isinstance(weight, Mapping):
        return dict.fromkeys(COMPONENTS, 1.0 if weight is None else finite_number(name, weight))
    if weight.keys() & set(SIDES):
        weight = {"unet": weight}
    if unknown := [key for key in weight if key not in COMPONENTS]:
        raise DistrijaxError(
            f"{name} has the key {unknown[0]!r}; the keys are {', '.join(COMPONENTS)}, or {', '.join(SIDES)} for "
            "blocks of the U-Net"
        )
    weights: dict[str, float | ByLayer] = {}
    for component in COMPONENTS:
        value, label = weight.get(component), f"{name}[{component!r}]"
        if component == "unet" and isinstance(value, Mapping):
            weights[component] = _by_layer(label, value, unet)
        else:
            weights[component] = 1.0 if value is None else finite_number(label, value)
    return weights


def layer_weight(weights: float | ByLayer, layer: str) -> float:
    """Return the weight of a layer of that name.

    As in diffusers, a residual block has the weight of the transformer with its number, and the other layers of a block
    that of its first; what is in no block with transformers has 1.
    """
    if not isinstance(weights, dict):
        return weights
    parts = layer.split(".")
    if parts[0] == "mid_block":
        return weights["mid_block.attentions.0"] if parts[1] == "attentions" else 1.0
    key = f"{parts[0]}.{parts[1]}.attentions.{parts[3]}" if len(parts) > 3 else ""
    return weights.get(key, 1.0)


def _by_layer(name: str, weights: Mapping[str, object], config: UNetConfig) -> ByLayer:
    if unknown := [key for key in weights if key not in SIDES]:
        raise DistrijaxError(f"{name} has the key {unknown[0]!r}; the keys are {', '.join(SIDES)}")
    mid = weights.get("mid")
    if isinstance(mid, list | tuple) and len(mid) == 1:
        mid = mid[0]
    found = {"mid_block.attentions.0": 1.0 if mid is None else finite_number(f"{name}['mid']", mid)}
    layers = {"down": config.layers_per_block, "up": tuple(n + 1 for n in reversed(config.layers_per_block))}
    kinds = {"down": config.down_block_types, "up": config.up_block_types}
    for side, counts in layers.items():
        blocks = {f"block_{i}": n for i, n in enumerate(counts) if "CrossAttn" in kinds[side][i]}
        values = weights.get(side)
        given = values if isinstance(values, Mapping) else dict.fromkeys(blocks, values)
        if unknown := [key for key in given if key not in blocks]:
            raise DistrijaxError(
                f"{name}[{side!r}] has the key {unknown[0]!r}; the blocks with transformers are {', '.join(blocks)}"
            )
        for block, count in blocks.items():
            label = f"{name}[{side!r}][{block!r}]"
            for i, value in enumerate(_listed(label, given.get(block), count)):
                number = block.removeprefix("block_")
                found[f"{side}_blocks.{number}.attentions.{i}"] = finite_number(label, value)
    return found


def _listed(name: str, value: object, count: int) -> list[object]:
    """Return a weight for each of the `count` transformers of a block."""
    values = list(value) if isinstance(value, list | tuple) else [1.0 if value is None else value]
    if len(values) == 1:
        values *= count
    if len(values) != count:
        raise DistrijaxError(f"{name} is {value!r}; it must be a number, or a list of {count}")
    return values
