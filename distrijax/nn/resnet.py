"""The residual block of the U-Net and of the autoencoder."""

from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distrijax.nn.conv import Conv, PointwiseConv
from distrijax.nn.exchange import Exchange
from distrijax.nn.module import linear
from distrijax.nn.norm import GroupNorm


class ResnetBlock(nnx.Module):
    """Group norm, SiLU and a 3x3 convolution, twice, with the time embedding added in between and a shortcut.

    Args:
        time_dim: channels of the time embedding; None for the autoencoder, which has none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_dim: int | None,
        *,
        groups: int,
        eps: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.norm1 = GroupNorm(in_channels, groups, eps=eps, dtype=dtype)
        self.conv1 = Conv(in_channels, out_channels, dtype=dtype, rngs=rngs)
        self.time_emb_proj = nnx.data(linear(time_dim, out_channels, dtype=dtype, rngs=rngs) if time_dim else None)
        self.norm2 = GroupNorm(out_channels, groups, eps=eps, dtype=dtype)
        self.conv2 = Conv(out_channels, out_channels, dtype=dtype, rngs=rngs)
        self.conv_shortcut = nnx.data(
            None if in_channels == out_channels else PointwiseConv(in_channels, out_channels, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x: Array, exchange: Exchange, time: Array | None = None) -> Array:  # [B, H, W, C], [B, D]
        y = self.conv1(x, exchange, self.norm1.then_silu(exchange))
        if time is not None and self.time_emb_proj is not None:
            y = y + self.time_emb_proj(nnx.silu(time))[:, None, None, :]
        y = self.conv2(y, exchange, self.norm2.then_silu(exchange))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))
