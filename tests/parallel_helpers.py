"""A U-Net that compiles in a second or two, and its denoising by any mesh with every step's prediction."""

import dataclasses
from functools import cache
from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from distrijax import Parallel, StableDiffusionXLPipeline, scheduler_from_config
from distrijax.config import UNetConfig
from distrijax.demo import MODEL
from distrijax.models.unet import UNet
from distrijax.nn.conv import order_kernels
from distrijax.nn.module import Weights, abstract
from distrijax.parallel.placement import place
from distrijax.sampling import programs
from distrijax.sampling.guidance import Guidance
from distrijax.sampling.inputs import LoopInputs, TextInputs, loop_inputs

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
GUIDANCE = Guidance.of(5.0)


def with_random_weights(model: Any, config: Any) -> Any:
    """`model` of `config`. Norms and biases are random too: 1 and 0 would hide a padding row that is not masked."""
    graph, weights = nnx.split(abstract(model, config, np.float32))
    rng = np.random.RandomState(0)

    def drawn(x: Any) -> Array:
        if x.ndim == 1:
            return jnp.asarray(np.float32(0.5 + 0.3 * rng.randn(*x.shape)))
        fan_in = prod(x.shape[1:]) if x.ndim == 4 else x.shape[0]
        return jnp.asarray(np.float32(rng.randn(*x.shape) / sqrt(fan_in)))

    drawn_model = nnx.merge(graph, jax.tree.map(drawn, weights))
    order_kernels(drawn_model, Parallel().kernel_order)
    return drawn_model


@cache
def small_unet() -> UNet:
    return with_random_weights(UNet, UNetConfig.from_json(UNET))


@cache
def small_pipeline() -> StableDiffusionXLPipeline:
    """The demo's, with a U-Net of random weights that compiles fast. A row of its middle is two of the latents'."""
    pipe = StableDiffusionXLPipeline.from_pretrained(MODEL, progress=False)
    pipe.set_progress_bar_config(disable=True)
    demo = pipe.unet.config
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": demo.addition_time_embed_dim,
        "cross_attention_dim": demo.cross_attention_dim,
        "projection_class_embeddings_input_dim": demo.projection_class_embeddings_input_dim,
        "norm_num_groups": 4,
    }
    pipe.unet = UNet(UNetConfig.from_json(config), jnp.float32, rngs=nnx.Rngs(0))
    return pipe


@cache
def smaller_unet() -> UNet:
    return with_random_weights(UNet, UNetConfig.from_json(SMALLER))


def relative(ours: Any, expected: Any) -> float:
    """The largest relative L2 distance of any step's prediction, or of anything with steps as its first axis."""
    ours, expected = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (ours, expected))
    assert ours.shape == expected.shape
    return float((np.linalg.norm(ours - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def inputs(
    unet: UNet,
    parallel: Parallel,
    size: tuple[int, int],
    *,
    batch: int = 1,
    steps: int = 2,
    padding: float = 0.0,
    guidance: Guidance = GUIDANCE,
) -> tuple[LoopInputs, dict[str, Any]]:
    """Inputs of the denoising program, with other conditioning for every picture, and its choices but for the phase.

    Args:
        size: rows and columns of the latents.
        padding: what the rows of padding start with.
    """
    rng = np.random.RandomState(0)
    shapes = (batch, *size, 4), (2, batch, 5, 12), (2, batch, 8), (2, batch, 6)
    latents, context, pooled, ids = (rng.randn(*shape).astype(np.float32) for shape in shapes)
    layout = parallel.layout(size[0], unet.config.row_multiple)
    made = loop_inputs(
        Weights.of(unet), TextInputs(context, pooled, 100 * ids), latents, None, guidance, DPM.schedule(steps),
        scheduler=DPM, parallel=parallel, layout=layout,
        condition=jax.jit(programs.condition, static_argnames="parallel", compiler_options=FAST),
    )  # fmt: skip
    if padding and layout.padding:
        padded = np.pad(latents, ((0, 0), (0, layout.padding), (0, 0), (0, 0)), constant_values=padding)
        carry = place(dataclasses.replace(made.carry, latents=padded), programs.CARRY, parallel)
        made = made._replace(carry=carry)
    return made, {"parallel": parallel.program_key, "layout": layout, "scheduler": DPM}


# Unoptimised machine code takes half the time, nearly all of which is compilation.
FAST = {"xla_backend_optimization_level": 0}
STATIC = ("parallel", "layout", "scheduler", "phase", "record")
_denoise = jax.jit(programs.denoise, static_argnames=STATIC, compiler_options=FAST)


def predictions(
    unet: UNet, parallel: Parallel, size: tuple[int, int], *, steps: int = 2, **choices: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Every step's prediction [S, 2, B, h, W, 4] by both guidance branches, and the final latents [B, h, W, 4]."""
    first, static = inputs(unet, parallel, size, steps=steps, **choices)
    now, seen, start = first.with_steps(0, steps, parallel), np.float32(0), 0
    for count, phase in parallel.phases(steps):
        now = now.with_turns(start, start + count, parallel)
        carry, _, predicted = _denoise(*now, **static, phase=phase, record=True)
        seen = seen + np.asarray(predicted)[:steps]  # zeros where it took no step
        now, start = now._replace(carry=carry), start + count
    height = size[0]
    return seen[:, :, :, :height], np.asarray(now.carry.latents)[:, :height]
