"""The tiny autoencoder of TAESD-XL, diffusers' `AutoencoderTiny`: small and fast, for previews or in place of the VAE.

It has neither normalisation nor attention, so that a device needs nothing but the rows beside its own.
"""

from collections.abc import Iterable

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distrijax.config import AutoencoderTinyConfig
from distrijax.models.vae import VAE
from distrijax.nn.conv import Conv, doubled
from distrijax.nn.exchange import WHOLE, Exchange
from distrijax.nn.module import Init, name_layers


class Relu(nnx.Module):
    """A rectifier as a layer of its own, so that the layers around it have the numbers that checkpoints give them."""

    def __call__(self, x: Array, exchange: Exchange) -> Array:
        return nnx.relu(x)


class Double(nnx.Module):
    """Nearest-neighbour upsampling by 2, a layer for the same reason."""

    def __call__(self, x: Array, exchange: Exchange) -> Array:  # [B, H, W, C] -> [B, 2H, 2W, C]
        return doubled(x)


class Block(nnx.Module):
    """Three convolutions with a residual connection around them."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        convolutions = [Conv(channels, channels, dtype=dtype, rngs=rngs) for _ in range(3)]
        self.conv = nnx.List([convolutions[0], Relu(), convolutions[1], Relu(), convolutions[2]])

    def __call__(self, x: Array, exchange: Exchange) -> Array:  # [B, H, W, C]
        y = x
        for layer in self.conv:
            y = layer(y, exchange)
        return nnx.relu(y + x)


class Chain(nnx.Module):
    """Layers that run one after the other."""

    def __init__(self, layers: Iterable[nnx.Module]):
        self.layers = nnx.List(layers)

    def __call__(self, x: Array, exchange: Exchange) -> Array:
        for layer in self.layers:
            x = layer(x, exchange)
        return x


def _encoder(config: AutoencoderTinyConfig, init: Init) -> Chain:
    width, layers = config.encoder_block_out_channels[0], list[nnx.Module]()
    for stage, blocks in enumerate(config.num_encoder_blocks):
        if stage == 0:
            layers.append(Conv(config.in_channels, width, **init))
        else:
            layers.append(Conv(width, width, stride=2, bias=False, **init))
        layers += [Block(width, **init) for _ in range(blocks)]
    return Chain([*layers, Conv(width, config.latent_channels, **init)])


def _decoder(config: AutoencoderTinyConfig, init: Init) -> Chain:
    width, last = config.decoder_block_out_channels[0], len(config.num_decoder_blocks) - 1
    layers: list[nnx.Module] = [Conv(config.latent_channels, width, **init), Relu()]
    for stage, blocks in enumerate(config.num_decoder_blocks):
        layers += [Block(width, **init) for _ in range(blocks)]
        if stage < last:
            layers += [Double(), Conv(width, width, bias=False, **init)]
    return Chain([*layers, Conv(width, config.out_channels, **init)])


class AutoencoderTiny(nnx.Module):
    """The tiny autoencoder, which takes the place of a `VAE`. TAESD-XL's latents need no scaling for the U-Net.

    Args:
        config: from the checkpoint's `config.json`.
        dtype: of weights and arithmetic.
    """

    def __init__(self, config: AutoencoderTinyConfig, dtype: DTypeLike = jnp.float32, *, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        init: Init = {"dtype": dtype, "rngs": rngs}
        self.encoder, self.decoder = _encoder(config, init), _decoder(config, init)
        name_layers(self, "vae")

    def encode(self, image: Array, exchange: Exchange = WHOLE) -> tuple[Array, None]:
        """Return the latents [B, h, w, C] of `image` [B, H, W, 3] in [-1, 1]; there is no variance to draw from."""
        return self.encoder((image.astype(self.dtype) + 1) / 2, exchange), None

    def decode(self, latents: Array, exchange: Exchange = WHOLE) -> Array:
        """Return the picture [B, H, W, 3] of `latents` [B, h, w, C]: in [-1, 1] apart from overshoot."""
        soft = jnp.tanh(latents.astype(self.dtype) / 3) * 3  # a clamp that hardly changes values below 2
        return self.decoder(soft, exchange) * 2 - 1


Autoencoder = VAE | AutoencoderTiny
"""A network from pictures to latents and back."""
