"""A convolution, whichever way it is computed: equal to torch's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from reference import error, to_numpy, to_torch

from distrijax.nn import conv
from distrijax.nn.conv import Conv, PointwiseConv
from distrijax.nn.exchange import WHOLE

pytestmark = pytest.mark.fast

PADDINGS = {"all around": ((1, 1), (1, 1)), "below and right": ((0, 1), (0, 1))}


def program(layer: Conv | PointwiseConv, x: jax.Array) -> str:
    """What is traced for this layer."""
    return str(jax.make_jaxpr(lambda x: layer(x, WHOLE) if isinstance(layer, Conv) else layer(x))(x))


@pytest.mark.parametrize("size", [(5, 6), (16, 16)], ids=["fewer pixels than channels", "more"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", PADDINGS.values(), ids=PADDINGS)
def test_conv_equals_torch(size: tuple[int, int], stride: int, padding: Any) -> None:
    layer = Conv(8, 96, stride=stride, padding=padding, dtype=jnp.float32, rngs=nnx.Rngs(0))
    rng = np.random.RandomState(0)
    layer.bias[...] = jnp.asarray(rng.randn(96), jnp.float32)
    x = rng.randn(2, *size, 8).astype(np.float32)
    assert ("conv_general_dilated" in program(layer, jnp.asarray(x))) == (2 * np.prod(size) // stride**2 >= 96)
    (above, below), (left, right) = padding
    padded = torch.nn.functional.pad(to_torch(x), (left, right, above, below))
    kernel = torch.from_numpy(np.array(layer.kernel[...])).permute(0, 3, 1, 2)
    expected = torch.nn.functional.conv2d(padded, kernel, torch.from_numpy(np.array(layer.bias[...])), stride)
    assert error(layer(jnp.asarray(x), WHOLE), to_numpy(expected)) < 1e-5


def test_pointwise_conv_is_a_product_on_a_cpu_and_a_convolution_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = PointwiseConv(8, 16, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.RandomState(0).randn(2, 16, 16, 8), jnp.float32)
    assert "conv_general_dilated" not in program(layer, x)
    product = layer(x)
    monkeypatch.setattr(conv, "traced_for", lambda: "gpu")
    assert "conv_general_dilated" in program(layer, x)
    assert error(product, np.asarray(layer(x))) < 1e-5


def test_every_convolution_is_one_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Conv(8, 96, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.RandomState(0).randn(1, 4, 4, 8), jnp.float32)
    product = layer(x, WHOLE)
    monkeypatch.setattr(conv, "traced_for", lambda: "gpu")
    assert "conv_general_dilated" in program(layer, x)
    assert error(product, np.asarray(layer(x, WHOLE))) < 1e-5
