"""A U-Net that compiles in a second or two, and its denoising by any mesh with every step's prediction."""

from functools import cache, partial
from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec as P

from distrijax import Parallel, scheduler_from_config
from distrijax.config import UNetConfig
from distrijax.denoise import Carry, Guidance, Steps, denoise
from distrijax.models.unet import UNet
from distrijax.nn.build import abstract
from distrijax.parallel.slabs import exchange
from distrijax.parallel.spread import spread
from distrijax.pipelines import programs

UNET = {  # three levels: rows go in fours. Self-attention at the second and the third
    "sample_size": 16,
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D"] * 3,
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
    "attention_head_dim": [2, 2, 4],
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 32,
}
SMALLER = UNET | {  # two levels: rows go in pairs
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
    "attention_head_dim": [2, 4],
}
DPM = scheduler_from_config(  # second order: it has a state
    {
        "_class_name": "DPMSolverMultistepScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    }
)
GUIDANCE = Guidance(np.float32([-4, 5]), np.float32([0, 1]))


def with_random_weights(model: Any, config: Any) -> Any:
    """`model` of `config`. Norms and biases are random too: 1 and 0 would hide a padding row that is not masked."""
    graph, weights = nnx.split(abstract(model, config, np.float32))
    rng = np.random.RandomState(0)

    def drawn(x: Any) -> Array:
        if x.ndim == 1:
            return jnp.asarray(np.float32(0.5 + 0.3 * rng.randn(*x.shape)))
        fan_in = prod(x.shape[1:]) if x.ndim == 4 else x.shape[0]
        return jnp.asarray(np.float32(rng.randn(*x.shape) / sqrt(fan_in)))

    return nnx.merge(graph, jax.tree.map(drawn, weights))


@cache
def small_unet() -> UNet:
    return with_random_weights(UNet, UNetConfig.from_json(UNET))


@cache
def smaller_unet() -> UNet:
    return with_random_weights(UNet, UNetConfig.from_json(SMALLER))


def relative(ours: Any, expected: Any) -> float:
    """The largest relative L2 distance of any step's prediction, or of anything with steps as its first axis."""
    ours, expected = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (ours, expected))
    assert ours.shape == expected.shape
    return float((np.linalg.norm(ours - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def inputs(height: int, width: int, batch: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Latents [B, h, W, 4], and what the U-Net is conditioned on, [2, B, ...]: another one for every picture."""
    rng = np.random.RandomState(0)
    shapes = (batch, height, width, 4), (2, batch, 5, 12), (2, batch, 8), (2, batch, 6)
    latents, context, pooled, ids = (rng.randn(*shape).astype(np.float32) for shape in shapes)
    return latents, [context, pooled, 100 * ids]


# Unoptimised machine code: half the time, nearly all of which is compilation.
@partial(
    jax.jit, static_argnames=("parallel", "height", "count"), compiler_options={"xla_backend_optimization_level": 0}
)
def _predictions(
    unet: UNet, latents: Array, text: list[Array], guidance: Guidance, parallel: Parallel, height: int, count: int
) -> tuple[Array, Array]:
    schedule = DPM.schedule(count)
    rows = parallel.rows(height, unet.config.row_multiple)
    steps = Steps(*jax.tree.map(jnp.asarray, (schedule.rows, schedule.timesteps)), None)
    first = parallel.synchronous_steps(count)

    def local(unet: UNet, carry: Carry, text: list[Array], steps: Steps, guidance: Guidance) -> Any:
        cond = unet.condition(*(x.reshape(-1, *x.shape[2:]) for x in text))
        seen = []
        for part, displaced in ((slice(first), False), (slice(first, None), True)):
            if len(range(count)[part]):
                each = exchange(parallel.mode, rows, displaced=displaced)
                carry, predictions = denoise(
                    unet, carry, steps[part], cond, guidance, scheduler=DPM, exchange=each, watch=lambda x: x
                )
                seen.append(predictions)
        return jnp.concatenate(seen), carry.latents

    specs = [P(), programs.CARRY, programs.TEXT, P(), programs.GUIDANCE]
    out = P(None, "cfg", "data", "patch"), programs.LATENTS
    return spread(local, parallel, specs, out)(unet, Carry(latents, DPM.init_state(latents)), text, steps, guidance)


def predictions(
    unet: UNet, parallel: Parallel, size: tuple[int, int], *, batch: int = 1, steps: int = 2, padding: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Every step's prediction [S, 2, B, h, W, 4] by both guidance branches, and the final latents [B, h, W, 4].

    Args:
        size: rows and columns of the latents.
        padding: what the rows of padding start with.
    """
    height, width = size
    latents, text = inputs(height, width, batch)
    rows = parallel.rows(height, unet.config.row_multiple)
    latents = np.pad(latents, ((0, 0), (0, rows.padding), (0, 0), (0, 0)), constant_values=padding)
    seen, final = _predictions(unet, latents, text, GUIDANCE, parallel, height, steps)
    return np.asarray(seen)[:, :, :, :height], np.asarray(final)[:, :height]
