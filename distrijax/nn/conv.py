"""Convolutions, channels last. The order of a kernel's axes depends on the platform; the results do not."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from distrijax.nn.exchange import Exchange, Fit, untouched
from distrijax.nn.module import Layer

_INIT = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=0)


class Conv(Layer):
    """A 2-D convolution over [B, H, W, C].

    Args:
        padding: zero rows and columns outside the picture, `((above, below), (left, right))`.
        bias: whether a bias is added; without one, the layer has no attribute of that name.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1)),
        bias: bool = True,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        shape = (out_channels, kernel_size, kernel_size, in_channels)
        self.kernel = nnx.Param(_INIT(rngs.params(), shape, dtype))
        if bias:
            self.bias = nnx.Param(jnp.zeros(out_channels, dtype))
        self.order, self.stride, self.padding = "OHWI", stride, padding

    def __call__(self, x: Array, exchange: Exchange, fit: Fit = untouched) -> Array:
        """Return the convolution of `fit(x)(x)`: [B, H, W, I] -> [B, H / stride, W / stride, O]."""
        rows, columns = self.padding
        with jax.named_scope(self.path):
            return _convolve(exchange.halo(self.path, x, *rows, fit), self, self.stride, columns)


class PointwiseConv(Layer):
    """A 1x1 convolution, which needs no neighbouring rows and so no exchange."""

    def __init__(self, in_channels: int, out_channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_INIT(rngs.params(), (out_channels, 1, 1, in_channels), dtype))
        self.bias = nnx.Param(jnp.zeros(out_channels, dtype))
        self.order = "OHWI"

    def __call__(self, x: Array) -> Array:  # [B, H, W, I] -> [B, H, W, O]
        with jax.named_scope(self.path):
            return _convolve(x, self, 1, (0, 0))


def _convolve(x: Array, layer: Conv | PointwiseConv, stride: int, columns: tuple[int, int]) -> Array:
    kernel = layer.kernel[...]
    if layer.order == "HWIO" and x.size // x.shape[-1] < kernel.shape[-1]:
        y = _product(x, kernel, stride, columns)
    else:
        y = lax.conv_general_dilated(
            x, kernel, (stride, stride), ((0, 0), columns), dimension_numbers=("NHWC", layer.order, "NHWC")
        )
    return y + layer.bias[...][None, None, None, :] if hasattr(layer, "bias") else y


def _product(x: Array, kernel: Array, stride: int, columns: tuple[int, int]) -> Array:
    """Return a convolution as a product of matrices.

    On a CPU it is up to four times as fast where pixels are fewer than channels: XLA's convolution spends 90 ms on the
    59 MB of a kernel with SDXL's 1,280 channels, however few pixels there are (two cores, jax 0.10.2 and 0.12).
    """
    rows, width, channels_in, channels_out = kernel.shape
    x = jnp.pad(x, ((0, 0), (0, 0), columns, (0, 0)))
    below, right = x.shape[1] - rows + 1, x.shape[2] - width + 1
    windows = [x[:, i : i + below : stride, j : j + right : stride] for i in range(rows) for j in range(width)]
    return jnp.concatenate(windows, -1) @ kernel.reshape(rows * width * channels_in, channels_out)


def order_kernels(model: nnx.Module, order: str) -> None:
    """Rearrange the axes of every convolution's kernel in place, one after the other to save memory.

    Args:
        model: may be abstract.
        order: `OHWI`, as in cuDNN and in checkpoints, or `HWIO`.
    """
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, Conv | PointwiseConv) and layer.order != order:
            kernel: Any = layer.kernel.get_value()
            move = partial(jnp.transpose, axes=[layer.order.index(axis) for axis in order])
            layer.kernel.set_value(
                jax.eval_shape(move, kernel) if isinstance(kernel, jax.ShapeDtypeStruct) else move(kernel)
            )
            layer.order = order


def stored_axes(model: nnx.Module) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """Return the axes of each convolution's kernel, by path, in the order that checkpoints have: OHWI."""
    convolutions = [(path, x) for path, x in nnx.iter_modules(model) if isinstance(x, Conv | PointwiseConv)]
    return {(*path, "kernel"): tuple(map(layer.order.index, "OHWI")) for path, layer in convolutions}


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


def doubled(x: Array) -> Array:  # [B, H, W, C] -> [B, 2H, 2W, C]
    """Return the picture with every pixel repeated twice along both sides."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class Upsample(nnx.Module):
    """Nearest-neighbour upsampling by 2, cropped to `size` and followed by a convolution."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, exchange: Exchange, size: tuple[int, int] | None = None) -> Array:
        _, h, w, _ = x.shape
        rows, columns = size or (2 * h, 2 * w)
        x = doubled(x)
        # As in torch's interpolate, an odd size 2h - 1 is the doubled picture without its last row.
        return self.conv(x[:, :rows, :columns], exchange)
