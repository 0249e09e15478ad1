"""The denoising loop."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from distrijax.models.unet import Conditioning, UNet
from distrijax.parallel.exchange import Exchange
from distrijax.schedulers import Scheduler

Carry = tuple[Array, Any]  # latents [B, h, w, C] fp32, and what the scheduler remembers of earlier steps


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Steps:
    """What differs from step to step; every array has the steps as its first axis."""

    rows: dict[str, Any]  # the scheduler's coefficients, [S]
    timesteps: Any  # as the U-Net is told them, [S]
    noise: Any  # [S, B, h, w, C]; None if no step draws any

    def __getitem__(self, part: slice) -> "Steps":
        return jax.tree.map(lambda x: x[part], self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (arXiv 2207.12598): arguments of the program, so that a change compiles nothing."""

    scale: Array
    rescale: Array  # arXiv 2305.08891, section 3.4; 0 leaves the prediction as it is


def denoise(
    unet: UNet,
    carry: Carry,
    steps: Steps,
    cond: Conditioning,
    guidance: Guidance,
    *,
    scheduler: Scheduler,
    px: Exchange,
) -> tuple[Carry, Array]:
    """Take some denoising steps.

    Args:
        cond: of B pictures, or of 2B where guidance is on: without the prompt first, with it behind.

    Returns:
        The carry after the last step, and that step's timestep: a host that waits for it waits for nothing larger.
    """

    def step(carry: Carry, now: Steps) -> tuple[Any, None]:
        latents, state = carry
        branches = cond.embedding.shape[0] // latents.shape[0]
        x = jnp.concatenate([scheduler.scale_model_input(now.rows, latents)] * branches)
        prediction = unet(x, now.timesteps, cond, px).astype(jnp.float32)
        prediction = guide(prediction, guidance, px) if branches == 2 else prediction
        return scheduler.step(now.rows, state, prediction, latents, now.noise), None

    return lax.scan(step, carry, steps)[0], steps.timesteps[-1]


def guide(prediction: Array, guidance: Guidance, px: Exchange) -> Array:
    """One prediction [B, h, w, C] from two, without and with the prompt [2B, h, w, C]."""
    without, prompted = jnp.split(prediction, 2)
    guided = without + guidance.scale * (prompted - without)
    # Rescaling takes the prediction back to its deviation with the prompt alone, over the whole picture.
    _, target = px.moments("guidance.prompted", prompted, 1)  # [B, 1]
    _, actual = px.moments("guidance.guided", guided, 1)
    ratio = jnp.sqrt(target / actual)[:, :, None, None]
    rescaled = guided * (guidance.rescale * ratio + (1 - guidance.rescale))
    return jnp.where(guidance.rescale > 0, rescaled, guided)
