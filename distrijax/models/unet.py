"""The U-Net of SDXL (`UNet2DConditionModel` in diffusers, arXiv 2307.01952)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distrijax.config import UNetConfig
from distrijax.nn.conv import Conv, Downsample, Upsample
from distrijax.nn.embeddings import TimestepEmbedding, sinusoidal_embedding
from distrijax.nn.exchange import WHOLE, Exchange
from distrijax.nn.module import Init, name_layers
from distrijax.nn.norm import GroupNorm
from distrijax.nn.resnet import ResnetBlock
from distrijax.nn.transformer import CrossAttention, KeysValues, Transformer2D

ROOT = "unet"
INPUT_LAYER = f"{ROOT}.conv_in"
"""The layer that reads the latents, whose halos are rows of latents instead of activations."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
    """The U-Net's input from the prompt, which `UNet.condition` computes once per picture for all steps."""

    cross: dict[str, KeysValues]  # by cross-attention layer, [T, B, C] each
    embedding: Array  # [B, D]: pooled text and sizes, added to the time embedding
    guidance: Array | None  # [B, E]: LCM's guidance scale, added to the input of the time embedding


class Block(nnx.Module):
    """Residual blocks, each followed by a transformer if there are `depths`, and an optional resampling at the end."""

    def __init__(
        self,
        config: UNetConfig,
        channels: list[tuple[int, int]],
        depths: tuple[int, ...] | None,
        heads: int,
        *,
        downsample: bool = False,
        upsample: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        init: Init = {"dtype": dtype, "rngs": rngs}
        out, groups, time_dim = channels[-1][1], config.norm_num_groups, 4 * config.block_out_channels[0]
        self.resnets = nnx.List(
            [ResnetBlock(i, o, time_dim, groups=groups, eps=config.norm_eps, **init) for i, o in channels]
        )
        self.attentions = nnx.List(
            [
                Transformer2D(
                    out,
                    config.cross_attention_dim,
                    heads,
                    depth,
                    groups=groups,
                    linear_projection=config.use_linear_projection,
                    **init,
                )
                for depth in depths or ()
            ]
        )
        self.downsamplers = nnx.List([Downsample(out, **init)] if downsample else [])
        self.upsamplers = nnx.List([Upsample(out, **init)] if upsample else [])

    def layer(self, i: int, x: Array, time: Array, cross: dict[str, KeysValues], exchange: Exchange) -> Array:
        x = self.resnets[i](x, exchange, time)
        return self.attentions[i](x, cross, exchange) if self.attentions else x


class DownBlock(Block):
    def __call__(self, x: Array, time: Array, cross: dict[str, KeysValues], exchange: Exchange) -> list[Array]:
        """Return every layer's output [B, H, W, C]; the last is the input of the next block."""
        outputs = []
        for i in range(len(self.resnets)):
            outputs.append(x := self.layer(i, x, time, cross, exchange))
        for downsample in self.downsamplers:
            outputs.append(downsample(x, exchange))
        return outputs


class MidBlock(Block):
    def __call__(
        self, x: Array, time: Array, cross: dict[str, KeysValues], exchange: Exchange
    ) -> Array:  # [B, H, W, C]
        return self.resnets[1](self.layer(0, x, time, cross, exchange), exchange, time)


class UpBlock(Block):
    def __call__(
        self, x: Array, skips: list[Array], time: Array, cross: dict[str, KeysValues], exchange: Exchange
    ) -> Array:  # [B, H, W, C] -> [B, 2H, 2W, C]
        """Consume skips from the end of `skips`, and upsample to the size of the last one that remains."""
        for i in range(len(self.resnets)):
            x = self.layer(i, jnp.concatenate([x, skips.pop()], -1), time, cross, exchange)
        for upsample in self.upsamplers:
            _, h, w, _ = skips[-1].shape
            x = upsample(x, exchange, (h, w))
        return x


class UNet(nnx.Module):
    """The U-Net, which predicts noise (or v, or the clean picture, as trained) from latents, timestep and prompt.

    Args:
        config: from the checkpoint's `config.json`.
        dtype: of weights and arithmetic; group and layer norms compute in fp32.
    """

    def __init__(self, config: UNetConfig, dtype: DTypeLike = jnp.float32, *, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        init: Init = {"dtype": dtype, "rngs": rngs}
        widths, time_dim = config.block_out_channels, 4 * config.block_out_channels[0]
        last = len(widths) - 1
        self.conv_in = Conv(config.in_channels, widths[0], **init)
        self.time_embedding = TimestepEmbedding(widths[0], time_dim, cond_dim=config.time_cond_proj_dim, **init)
        self.add_embedding = TimestepEmbedding(config.projection_class_embeddings_input_dim, time_dim, **init)

        down, skips, x = [], [widths[0]], widths[0]
        for i, kind in enumerate(config.down_block_types):
            channels = [(x if j == 0 else widths[i], widths[i]) for j in range(config.layers_per_block[i])]
            depths = config.transformer_layers[i] if kind.startswith("CrossAttn") else None
            down.append(DownBlock(config, channels, depths, config.attention_heads[i], downsample=i < last, **init))
            skips += [widths[i]] * (len(channels) + (i < last))
            x = widths[i]
        mid = MidBlock(config, [(x, x), (x, x)], (config.mid_transformer_layers,), config.attention_heads[-1], **init)
        up = []
        for i, kind in enumerate(config.up_block_types):
            width = widths[last - i]
            channels = []
            for _ in range(config.layers_per_block[last - i] + 1):
                channels.append((x + skips.pop(), width))
                x = width
            depths = config.up_transformer_layers[i] if kind.startswith("CrossAttn") else None
            up.append(UpBlock(config, channels, depths, config.attention_heads[last - i], upsample=i < last, **init))

        self.down_blocks, self.up_blocks = nnx.List(down), nnx.List(up)
        self.mid_block = nnx.data(mid if config.has_mid_block else None)
        self.conv_norm_out = GroupNorm(x, config.norm_num_groups, eps=config.norm_eps, dtype=dtype)
        self.conv_out = Conv(x, config.out_channels, **init)
        name_layers(self, ROOT)

    def condition(self, context: Array, pooled: Array, time_ids: Array, guidance: Array | None = None) -> Conditioning:
        """Return what the prompt contributes to every step.

        Args:
            context: [B, T, D], hidden states of the text encoders.
            pooled: [B, P], pooled text embedding.
            time_ids: [B, 6] (refiner: 5), sizes in pixels as in diffusers' `add_time_ids`.
            guidance: [B, E], `guidance_embedding` of the scale, for U-Nets with `time_cond_proj_dim` E.
        """
        sizes = self._sinusoids(time_ids.reshape(-1), self.config.addition_time_embed_dim)
        sizes = sizes.reshape(time_ids.shape[0], -1)  # [B, 6 * addition_time_embed_dim]
        added = self.add_embedding(jnp.concatenate([pooled.astype(self.dtype), sizes], -1))
        context = context.astype(self.dtype)
        cross = {m.path: m.keys_values(context) for _, m in nnx.iter_modules(self) if isinstance(m, CrossAttention)}
        if guidance is not None and self.time_embedding.cond_proj is not None:
            guidance = self.time_embedding.cond_proj(guidance.astype(self.dtype))
        return Conditioning(cross, added, guidance)

    def __call__(self, latents: Array, timestep: Array, cond: Conditioning, exchange: Exchange = WHOLE) -> Array:
        """Return the prediction for `latents`.

        Args:
            latents: [B, h, w, C].
            timestep: scalar or [B].
            exchange: answers for the rows that this device does not hold; by default, it holds all.

        Returns:
            [B, h, w, C] in the model's dtype.
        """
        time = self._sinusoids(jnp.broadcast_to(timestep, latents.shape[:1]), self.config.block_out_channels[0])
        if cond.guidance is not None:
            time = time + cond.guidance
        time = self.time_embedding(time) + cond.embedding  # [B, D]

        x = self.conv_in(latents.astype(self.dtype), exchange)
        skips = [x]
        for down in self.down_blocks:
            skips += down(x, time, cond.cross, exchange)
            x = skips[-1]
        if self.mid_block is not None:
            x = self.mid_block(x, time, cond.cross, exchange)
        for up in self.up_blocks:
            x = up(x, skips, time, cond.cross, exchange)
        return self.conv_out(x, exchange, self.conv_norm_out.then_silu(exchange))

    def _sinusoids(self, x: Array, dim: int) -> Array:  # [N] -> [N, dim]
        config = self.config
        embedding = sinusoidal_embedding(x, dim, flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift)
        return embedding.astype(self.dtype)
