"""Convolutions equal torch's, whatever the order of their kernels' axes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from parallel_helpers import UNET, small_unet
from reference import error, to_numpy, to_torch

from distrijax import Parallel
from distrijax.config import UNetConfig
from distrijax.models.unet import UNet
from distrijax.nn.conv import Conv, PointwiseConv, order_kernels, stored_axes
from distrijax.nn.exchange import WHOLE
from distrijax.nn.module import Weights, abstract
from distrijax.parallel.placement import place_model

pytestmark = pytest.mark.fast

PADDINGS = {"all around": ((1, 1), (1, 1)), "below and right": ((0, 1), (0, 1))}


@pytest.mark.parametrize("order", ["OHWI", "HWIO"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize("channels", [16, 96], ids=["fewer channels than pixels", "more channels than pixels"])
def test_conv_equals_torch(order: str, stride: int, padding: Any, channels: int) -> None:
    layer = Conv(8, channels, stride=stride, padding=padding, dtype=jnp.float32, rngs=nnx.Rngs(0))
    rng = np.random.RandomState(0)
    layer.bias[...] = jnp.asarray(rng.randn(channels), jnp.float32)
    kernel = torch.from_numpy(np.array(layer.kernel[...])).permute(0, 3, 1, 2)
    x = rng.randn(2, 5, 6, 8).astype(np.float32)
    (above, below), (left, right) = padding
    padded = torch.nn.functional.pad(to_torch(x), (left, right, above, below))
    expected = torch.nn.functional.conv2d(padded, kernel, torch.from_numpy(np.array(layer.bias[...])), stride)
    order_kernels(layer, order)
    assert layer.kernel.shape == ((3, 3, 8, channels) if order == "HWIO" else (channels, 3, 3, 8))
    assert error(layer(jnp.asarray(x), WHOLE), to_numpy(expected)) < 1e-5


def test_kernels_come_back_in_the_order_of_checkpoints() -> None:
    layer = PointwiseConv(8, 16, dtype=jnp.float32, rngs=nnx.Rngs(0))
    kernel = np.array(layer.kernel[...])
    for order in ("HWIO", "OHWI", "HWIO"):
        order_kernels(layer, order)
        np.testing.assert_array_equal(layer.kernel[...].transpose(stored_axes(layer)["kernel",]), kernel)


def test_an_abstract_model_is_like_a_placed_one() -> None:
    config = UNetConfig.from_json(UNET)
    unet = abstract(UNet, config, jnp.float32)
    order_kernels(unet, Parallel().kernel_order)
    placed = Weights.of(place_model(small_unet(), Parallel()))
    assert placed.structure == Weights.of(unet).structure
    assert [x.shape for x in placed.arrays] == [x.shape for x in Weights.of(unet).arrays]
    assert unet.conv_in.order == "HWIO"  # on a CPU
