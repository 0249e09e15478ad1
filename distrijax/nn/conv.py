"""Convolutions: channels last, weights OHWI (the layout cuDNN wants: HWIO costs a resident transposed copy of each)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from distrijax.nn.platform import traced_for
from distrijax.parallel.exchange import Exchange

_INIT = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=0)


class Conv(nnx.Module):
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
        self.stride, self.padding, self.path = stride, padding, ""

    def __call__(self, x: Array, px: Exchange) -> Array:  # [B, H, W, I] -> [B, H / stride, W / stride, O]
        rows, columns = self.padding
        with jax.named_scope(self.path):
            return _convolve(px.halo(self.path, x, *rows), self, self.stride, columns)


class PointwiseConv(nnx.Module):
    """A 1x1 convolution: it needs no other rows, and so no exchange."""

    def __init__(self, in_channels: int, out_channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_INIT(rngs.params(), (out_channels, 1, 1, in_channels), dtype))
        self.bias = nnx.Param(jnp.zeros(out_channels, dtype))
        self.path = ""

    def __call__(self, x: Array) -> Array:  # [B, H, W, I] -> [B, H, W, O]
        with jax.named_scope(self.path):
            return _convolve(x, self, 1, (0, 0))


def _convolve(x: Array, layer: Conv | PointwiseConv, stride: int, columns: tuple[int, int]) -> Array:
    kernel = layer.kernel[...]
    out, *size, _ = kernel.shape
    rows = (x.shape[1] - size[0]) // stride + 1
    width = (x.shape[2] + sum(columns) - size[1]) // stride + 1
    # XLA's CPU compiler turns OHWI weights into HWIO in every call, and slowly: a third of a step of SDXL at 32x32
    # latents. Where the pixels are fewer than the channels, it costs less to copy them nine times.
    if traced_for() == "cpu" and (size == [1, 1] or x.shape[0] * rows * width < out):
        x = jnp.pad(x, ((0, 0), (0, 0), columns, (0, 0)))
        y = _as_product(x, kernel, stride, rows, width)
    else:
        y = lax.conv_general_dilated(
            x, kernel, (stride, stride), ((0, 0), columns), dimension_numbers=("NHWC", "OHWI", "NHWC")
        )
    return y + layer.bias[...][None, None, None, :]


def _as_product(x: Array, kernel: Array, stride: int, rows: int, width: int) -> Array:
    """The convolution of `x` [B, H, W, I] as one matrix product: [B, rows, width, O]."""

    def seen(offset: int, count: int) -> slice:
        return slice(offset, offset + (count - 1) * stride + 1, stride)

    _, height, length, _ = kernel.shape
    around = [x[:, seen(i, rows), seen(j, width)] for i in range(height) for j in range(length)]
    return lax.dot_general(jnp.concatenate(around, -1), kernel.reshape(len(kernel), -1), (((3,), (1,)), ((), ())))


class Downsample(nnx.Module):
    """Halves rows and columns by a strided 3x3 convolution; an odd size is rounded up when `padding` is symmetric."""

    def __init__(
        self,
        channels: int,
        *,
        padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1)),
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(channels, channels, stride=2, padding=padding, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, px: Exchange) -> Array:  # [B, H, W, C] -> [B, H/2, W/2, C]
        return self.conv(x, px)


class Upsample(nnx.Module):
    """Doubles rows and columns (nearest neighbour), crops to `size`, and convolves."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, px: Exchange, size: tuple[int, int] | None = None) -> Array:
        b, h, w, c = x.shape
        rows, columns = size or (2 * h, 2 * w)
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        # Nearest neighbour to the odd size 2h - 1 is the doubled picture less its last row, as in torch's interpolate.
        return self.conv(x[:, :rows, :columns], px)
