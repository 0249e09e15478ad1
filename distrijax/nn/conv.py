"""Convolutions, channels last, with weights in cuDNN's layout OHWI: HWIO would cost a transposed copy of each."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from distrijax.nn.exchange import Exchange
from distrijax.nn.module import Layer
from distrijax.nn.platform import traced_for

_INIT = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=0)


class Conv(Layer):
    """A 2-D convolution over [B, H, W, C].

    Args:
        padding: zero rows and columns outside the picture, `((above, below), (left, right))`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1)),
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        shape = (out_channels, kernel_size, kernel_size, in_channels)
        self.kernel = nnx.Param(_INIT(rngs.params(), shape, dtype))
        self.bias = nnx.Param(jnp.zeros(out_channels, dtype))
        self.stride, self.padding = stride, padding

    def __call__(self, x: Array, exchange: Exchange) -> Array:  # [B, H, W, I] -> [B, H / stride, W / stride, O]
        rows, columns = self.padding
        with jax.named_scope(self.path):
            return _convolve(exchange.halo(self.path, x, *rows), self, self.stride, columns)


class PointwiseConv(Layer):
    """A 1x1 convolution, which needs no neighbouring rows and so no exchange."""

    def __init__(self, in_channels: int, out_channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_INIT(rngs.params(), (out_channels, 1, 1, in_channels), dtype))
        self.bias = nnx.Param(jnp.zeros(out_channels, dtype))

    def __call__(self, x: Array) -> Array:  # [B, H, W, I] -> [B, H, W, O]
        with jax.named_scope(self.path):
            return _convolve(x, self, 1, (0, 0))


def _convolve(x: Array, layer: Conv | PointwiseConv, stride: int, columns: tuple[int, int]) -> Array:
    kernel = layer.kernel[...]
    out, *size, _ = kernel.shape
    rows = (x.shape[1] - size[0]) // stride + 1
    width = (x.shape[2] + sum(columns) - size[1]) // stride + 1
    # XLA's CPU compiler transposes OHWI weights to HWIO in every call, a third of a step of SDXL at 32x32 latents.
    # With fewer pixels than channels, copying the pixels nine times is cheaper.
    if traced_for() == "cpu" and (size == [1, 1] or x.shape[0] * rows * width < out):
        x = jnp.pad(x, ((0, 0), (0, 0), columns, (0, 0)))
        y = _as_product(x, kernel, stride, rows, width)
    else:
        y = lax.conv_general_dilated(
            x, kernel, (stride, stride), ((0, 0), columns), dimension_numbers=("NHWC", "OHWI", "NHWC")
        )
    return y + layer.bias[...][None, None, None, :]


def _as_product(x: Array, kernel: Array, stride: int, rows: int, width: int) -> Array:
    """Return the convolution of `x` [B, H, W, I] as one matrix product: [B, rows, width, O]."""

    def window(offset: int, count: int) -> slice:
        return slice(offset, offset + (count - 1) * stride + 1, stride)

    _, height, length, _ = kernel.shape
    neighbours = [x[:, window(i, rows), window(j, width)] for i in range(height) for j in range(length)]
    return lax.dot_general(jnp.concatenate(neighbours, -1), kernel.reshape(len(kernel), -1), (((3,), (1,)), ((), ())))


class Downsample(nnx.Module):
    """A strided 3x3 convolution that halves rows and columns; symmetric padding rounds odd sizes up."""

    def __init__(
        self,
        channels: int,
        *,
        padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1)),
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(channels, channels, stride=2, padding=padding, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, exchange: Exchange) -> Array:  # [B, H, W, C] -> [B, H/2, W/2, C]
        return self.conv(x, exchange)


class Upsample(nnx.Module):
    """Nearest-neighbour upsampling by 2, cropped to `size` and followed by a convolution."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, exchange: Exchange, size: tuple[int, int] | None = None) -> Array:
        b, h, w, c = x.shape
        rows, columns = size or (2 * h, 2 * w)
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        # As in torch's interpolate, an odd size 2h - 1 is the doubled picture without its last row.
        return self.conv(x[:, :rows, :columns], exchange)
