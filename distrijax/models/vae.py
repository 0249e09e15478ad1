"""The autoencoder of SDXL, diffusers' `AutoencoderKL`: pixels to latents and back."""

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distrijax.config import VAEConfig
from distrijax.nn.conv import Conv, Downsample, PointwiseConv, Upsample
from distrijax.nn.exchange import WHOLE, Exchange
from distrijax.nn.module import Init, name_layers
from distrijax.nn.norm import GroupNorm
from distrijax.nn.resnet import ResnetBlock
from distrijax.nn.transformer import SelfAttention

_EPS = 1e-6  # of every group norm in the autoencoder; the U-Net's residual blocks have 1e-5


class PixelAttention(SelfAttention):
    """Self-attention with one head over all pixels, with a group norm before it and a residual connection."""

    def __init__(self, channels: int, groups: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(channels, 1, bias=True, dtype=dtype, rngs=rngs)
        self.group_norm = GroupNorm(channels, groups, eps=_EPS, dtype=dtype)

    def __call__(self, x: Array, exchange: Exchange) -> Array:  # [B, H, W, C]
        y = self.group_norm(x, exchange).transpose(1, 2, 0, 3)  # [H, W, B, C], as `attend` expects
        return x + super().__call__(y, exchange).transpose(2, 0, 1, 3)


class Block(nnx.Module):
    """Residual blocks with an optional resampling at the end."""

    def __init__(
        self,
        channels: list[tuple[int, int]],
        groups: int,
        *,
        downsample: bool = False,
        upsample: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        init: Init = {"dtype": dtype, "rngs": rngs}
        out = channels[-1][1]
        self.resnets = nnx.List([ResnetBlock(i, o, None, groups=groups, eps=_EPS, **init) for i, o in channels])
        # Zeros only below and to the right: the encoder was trained with torch.nn.functional.pad(x, (0, 1, 0, 1)).
        self.downsamplers = nnx.List([Downsample(out, padding=((0, 1), (0, 1)), **init)] if downsample else [])
        self.upsamplers = nnx.List([Upsample(out, **init)] if upsample else [])

    def __call__(self, x: Array, exchange: Exchange) -> Array:  # [B, H, W, C]
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x, exchange)
        return x


class MidBlock(Block):
    """Two residual blocks with attention between them."""

    def __init__(self, channels: int, groups: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__([(channels, channels)] * 2, groups, dtype=dtype, rngs=rngs)
        self.attentions = nnx.List([PixelAttention(channels, groups, dtype=dtype, rngs=rngs)])

    def __call__(self, x: Array, exchange: Exchange) -> Array:  # [B, H, W, C]
        return self.resnets[1](self.attentions[0](self.resnets[0](x, exchange), exchange), exchange)


class Encoder(nnx.Module):
    """The network from pictures [B, H, W, 3] to the moments of their latents [B, h, w, 2C], before `quant_conv`."""

    def __init__(self, config: VAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init: Init = {"dtype": dtype, "rngs": rngs}
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = Conv(config.in_channels, widths[0], **init)
        down, x = [], widths[0]
        for i, width in enumerate(widths):
            channels = [(x if j == 0 else width, width) for j in range(config.layers_per_block)]
            down.append(Block(channels, groups, downsample=i < len(widths) - 1, **init))
            x = width
        self.down_blocks = nnx.List(down)
        self.mid_block = MidBlock(x, groups, **init)
        self.conv_norm_out = GroupNorm(x, groups, eps=_EPS, dtype=dtype)
        self.conv_out = Conv(x, 2 * config.latent_channels, **init)

    def __call__(self, x: Array, exchange: Exchange) -> Array:
        x = self.conv_in(x, exchange)
        for block in self.down_blocks:
            x = block(x, exchange)
        return self.conv_out(self.mid_block(x, exchange), exchange, self.conv_norm_out.then_silu(exchange))


class Decoder(nnx.Module):
    """The network from latents [B, h, w, C], after `post_quant_conv`, to pictures [B, H, W, 3]."""

    def __init__(self, config: VAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        init: Init = {"dtype": dtype, "rngs": rngs}
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        x = widths[0]
        self.conv_in = Conv(config.latent_channels, x, **init)
        self.mid_block = MidBlock(x, groups, **init)
        up = []
        for i, width in enumerate(widths):
            channels = [(x if j == 0 else width, width) for j in range(config.layers_per_block + 1)]
            up.append(Block(channels, groups, upsample=i < len(widths) - 1, **init))
            x = width
        self.up_blocks = nnx.List(up)
        self.conv_norm_out = GroupNorm(x, groups, eps=_EPS, dtype=dtype)
        self.conv_out = Conv(x, config.out_channels, **init)

    def __call__(self, x: Array, exchange: Exchange) -> Array:
        x = self.mid_block(self.conv_in(x, exchange), exchange)
        for block in self.up_blocks:
            x = block(x, exchange)
        return self.conv_out(x, exchange, self.conv_norm_out.then_silu(exchange))


class VAE(nnx.Module):
    """The autoencoder. `config.to_unet` scales its latents for the U-Net.

    Args:
        config: from the checkpoint's `config.json`.
        dtype: of weights and arithmetic. SDXL's original decoder overflows in fp16: use bf16 or fp32.
    """

    def __init__(self, config: VAEConfig, dtype: DTypeLike = jnp.float32, *, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        init: Init = {"dtype": dtype, "rngs": rngs}
        channels = config.latent_channels
        self.encoder, self.decoder = Encoder(config, **init), Decoder(config, **init)
        self.quant_conv = PointwiseConv(2 * channels, 2 * channels, **init)
        self.post_quant_conv = PointwiseConv(channels, channels, **init)
        name_layers(self, "vae")

    def encode(self, image: Array, exchange: Exchange = WHOLE) -> tuple[Array, Array]:
        """Return the mean and log variance of the latents [B, h, w, C] of `image` [B, H, W, 3] in [-1, 1]."""
        moments = self.quant_conv(self.encoder(image.astype(self.dtype), exchange))
        mean, logvar = jnp.split(moments, 2, -1)
        return mean, jnp.clip(logvar, -30, 20)

    def decode(self, latents: Array, exchange: Exchange = WHOLE) -> Array:
        """Return the picture [B, H, W, 3] of `latents` [B, h, w, C]: in [-1, 1] apart from overshoot."""
        return self.decoder(self.post_quant_conv(latents.astype(self.dtype)), exchange)
