"""The CLIP text encoder. SDXL has two: OpenAI's ViT-L, and OpenCLIP's bigG with its projection.

A pre-norm transformer with a causal mask (Radford et al. 2021, arXiv 2103.00020). Attribute paths equal the names in
transformers' state dict without the leading `text_model.`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distrijax.config import TextEncoderConfig
from distrijax.nn.norm import LayerNorm


class TextEncoding(NamedTuple):
    """Hidden states and pooled vectors of B sequences of T tokens; D = hidden_size, P = projection_dim or D.

    Attributes:
        hidden_states: num_hidden_layers + 1 arrays [B, T, D]: the embeddings, then each layer's output, before the
            final layer norm. SDXL reads the penultimate one.
        last: [B, T, D], the last hidden state after the final layer norm.
        pooled: [B, P], `last` at the end-of-text token, projected if the model has a projection.
    """

    hidden_states: tuple[Array, ...]
    last: Array
    pooled: Array


class Added(NamedTuple):
    """Embeddings of tokens that are not in the vocabulary, such as those of textual inversion.

    Attributes:
        first: id of the first one; the next ones follow.
        vectors: [N, D].
    """

    first: Array
    vectors: Array


class TextEncoder(nnx.Module):
    """A CLIP text encoder: token ids in, hidden states and a pooled vector out."""

    def __init__(self, config: TextEncoderConfig, dtype: DTypeLike = jnp.float32, *, rngs: nnx.Rngs):
        """Create an encoder with random weights.

        Args:
            config: sizes, activation, end-of-text id.
            dtype: dtype of weights and arithmetic; statistics of layer norm and softmax are always fp32.
            rngs: source of the random weights.
        """
        self.config = config
        self.embeddings = Embeddings(config, dtype, rngs=rngs)
        self.encoder = Layers(config, dtype, rngs=rngs)
        self.final_layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps, dtype=dtype)
        if config.with_projection:
            self.text_projection = _linear(config.hidden_size, config.projection_dim, dtype, rngs, use_bias=False)

    def __call__(self, ids: Array, added: Added | None = None, mask: Array | None = None) -> TextEncoding:
        """Encode token ids [B, T], with T at most max_position_embeddings.

        Args:
            ids: integers below vocab_size, or ids of `added`.
            mask: [B, T], false where no token may look.
        """
        length, limit = ids.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise ValueError(f"text encoder: {length} tokens exceed its {limit} positions")
        with jax.named_scope("embeddings"):
            x = self.embeddings(ids, added)  # [B, T, D]
        hidden_states = [x]
        for index, layer in enumerate(self.encoder.layers):
            with jax.named_scope(f"layers.{index}"):
                x = layer(x, mask)
            hidden_states.append(x)
        with jax.named_scope("pool"):
            last = self.final_layer_norm(x)
            pooled = jnp.take_along_axis(last, self.end_of_text(ids)[:, None, None], axis=1)[:, 0]  # [B, D]
            if self.config.with_projection:
                pooled = self.text_projection(pooled)  # [B, P]
        return TextEncoding(tuple(hidden_states), last, pooled)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the weights."""
        return self.embeddings.token_embedding.embedding.dtype

    def end_of_text(self, ids: Array) -> Array:
        """Return the position [B] of each sequence's end token.

        Old files have the wrong eos_token_id 2; for them, as in transformers, the highest id marks the end.
        """
        if self.config.eos_token_id == 2:
            return jnp.argmax(ids, axis=1)
        return jnp.argmax(ids == self.config.eos_token_id, axis=1)


class Embeddings(nnx.Module):
    """Token embeddings plus learned position embeddings."""

    def __init__(self, config: TextEncoderConfig, dtype: DTypeLike, *, rngs: nnx.Rngs):
        def embed(entries: int) -> nnx.Embed:
            init = nnx.initializers.normal(0.02)
            return nnx.Embed(
                entries, config.hidden_size, dtype=dtype, param_dtype=dtype, embedding_init=init, rngs=rngs
            )

        self.token_embedding = embed(config.vocab_size)
        self.position_embedding = embed(config.max_position_embeddings)

    def __call__(self, ids: Array, added: Added | None = None) -> Array:
        positions = jnp.arange(ids.shape[1])[None]  # [1, T]
        x = self.token_embedding(ids)
        if added is not None:
            number = jnp.clip(ids - added.first, 0, len(added.vectors) - 1)
            x = jnp.where((ids >= added.first)[..., None], added.vectors[number], x)
        return x + self.position_embedding(positions)


class Layers(nnx.Module):
    """The list of layers, under its name in checkpoints."""

    def __init__(self, config: TextEncoderConfig, dtype: DTypeLike, *, rngs: nnx.Rngs):
        self.layers = nnx.List([Layer(config, dtype, rngs=rngs) for _ in range(config.num_hidden_layers)])


class Layer(nnx.Module):
    """A transformer layer: attention and MLP, each after a layer norm and added to its input."""

    def __init__(self, config: TextEncoderConfig, dtype: DTypeLike, *, rngs: nnx.Rngs):
        self.layer_norm1 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps, dtype=dtype)
        self.self_attn = Attention(config, dtype, rngs=rngs)
        self.layer_norm2 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps, dtype=dtype)
        self.mlp = MLP(config, dtype, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None) -> Array:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Attention(nnx.Module):
    """Causal self-attention."""

    def __init__(self, config: TextEncoderConfig, dtype: DTypeLike, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.heads = config.num_attention_heads
        # CLIP's own initial scales keep the size of the residual stream independent of depth.
        inner = width**-0.5 * (2 * config.num_hidden_layers) ** -0.5
        self.q_proj = _linear(width, width, dtype, rngs, inner)
        self.k_proj = _linear(width, width, dtype, rngs, inner)
        self.v_proj = _linear(width, width, dtype, rngs, inner)
        self.out_proj = _linear(width, width, dtype, rngs)

    def __call__(self, x: Array, mask: Array | None) -> Array:
        batch, length, width = x.shape
        keys = None if mask is None else mask[:, None, None, :]  # [B, 1, 1, T]

        def heads(y: Array) -> Array:
            return y.reshape(batch, length, self.heads, -1)  # [B, T, H, D/H]

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        # A fused kernel gains nothing at 77 tokens and restricts lengths and head sizes. JAX's own code mixes bfloat16
        # and float32 in the softmax, which strict promotion rejects.
        with jax.numpy_dtype_promotion("standard"):
            y = jax.nn.dot_product_attention(q, k, v, mask=keys, is_causal=True, implementation="xla")
        return self.out_proj(y.reshape(batch, length, width))


class MLP(nnx.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, config: TextEncoderConfig, dtype: DTypeLike, *, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        self.act = config.hidden_act
        self.fc1 = _linear(width, inner, dtype, rngs, (2 * width) ** -0.5)
        self.fc2 = _linear(inner, width, dtype, rngs, width**-0.5 * (2 * config.num_hidden_layers) ** -0.5)

    def __call__(self, x: Array) -> Array:
        x = self.fc1(x)
        # OpenAI's models approximate GELU by a sigmoid; OpenCLIP's use the exact one.
        x = x * jax.nn.sigmoid(1.702 * x) if self.act == "quick_gelu" else jax.nn.gelu(x, approximate=False)
        return self.fc2(x)


def _linear(
    inputs: int, outputs: int, dtype: DTypeLike, rngs: nnx.Rngs, std: float | None = None, use_bias: bool = True
) -> nnx.Linear:
    init = nnx.initializers.normal(inputs**-0.5 if std is None else std)
    return nnx.Linear(inputs, outputs, use_bias=use_bias, dtype=dtype, param_dtype=dtype, kernel_init=init, rngs=rngs)
