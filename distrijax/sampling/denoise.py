"""The denoising loop, as one device runs it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from distrijax.models.unet import Conditioning, UNet
from distrijax.nn.exchange import Exchange
from distrijax.parallel.messages import Carried
from distrijax.sampling.guidance import Guidance, guide
from distrijax.schedulers import Scheduler


class StepExchange(Exchange, Protocol):
    """The exchange object of one step, which also returns what the next one needs."""

    def carry(self) -> Carried: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carry:
    """The state that one step passes to the next; every device keeps its own rows of it throughout.

    Attributes:
        latents: fp32 [B, h, W, C].
        state: the scheduler's state, a tuple of arrays shaped like the latents.
        pieces: what the exchange carries; None before the first step.
    """

    latents: Array
    state: tuple[Array, ...]
    pieces: Carried | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Steps:
    """The inputs that differ from step to step; every array has the steps as its first axis.

    Attributes:
        coefficients: the scheduler's, by name, fp32 [S] each.
        timesteps: the U-Net's time inputs, [S].
        noise: [S, B, h, W, C]; None if no step draws any.
    """

    coefficients: Mapping[str, Array]
    timesteps: Array
    noise: Array | None

    def __getitem__(self, part: slice | int) -> "Steps":
        return jax.tree.map(lambda x: x[part], self)


Maps = Mapping[str, Array]
"""Arrays that are divided like latents, [B, h, W, …], and are the same in every step, by name."""

EXTRA_CHANNELS = "extra_channels"
"""The map that the U-Net sees beside the latents: the mask and the masked picture of an inpainting model."""

AfterStep = Callable[[Array, Steps, Maps], Array]
"""Changes the latents after a step, given what the step had and the maps: inpainting blends in what is not masked."""


def keep_latents(latents: Array, now: Steps, maps: Maps) -> Array:
    """Return the latents as they are."""
    return latents


def denoise(
    unet: UNet,
    carry: Carry,
    steps: Steps,
    cond: Conditioning,
    guidance: Guidance,
    maps: Maps,
    *,
    scheduler: Scheduler,
    exchange: Callable[[Carried | None], StepExchange],
    after_step: AfterStep = keep_latents,
    record: bool = False,
) -> tuple[Carry, Array | None]:
    """Take denoising steps with this device's rows, guidance branches and pictures.

    Args:
        cond: conditioning of `branches * B` pictures, all of the first branch first.
        maps: what every step sees beside the latents.
        exchange: makes each step's exchange object from what the previous step kept.
        after_step: changes the latents after each step; elementwise, so that nothing more is sent.
        record: whether to return every step's predictions.

    Returns:
        The carry after the last step, and the predictions [S, branches, B, h, W, C] before guidance, if recorded.
    """

    def step(carry: Carry, now: Steps) -> tuple[Carry, Array | None]:
        answers = exchange(carry.pieces)
        branches = jnp.ones_like(guidance.weights)[:, None, None, None, None]  # those of this device
        x = branches * scheduler.scale_model_input(now.coefficients, carry.latents)[None]  # [branches, B, h, W, C]
        seen = x
        if EXTRA_CHANNELS in maps:
            seen = jnp.concatenate([x, branches * maps[EXTRA_CHANNELS][None]], -1)
        prediction = unet(seen.reshape(-1, *seen.shape[2:]), now.timesteps, cond, answers)
        prediction = prediction.astype(jnp.float32).reshape(x.shape)
        guided = guide(prediction, guidance, answers)
        latents, state = scheduler.step(now.coefficients, carry.state, guided, carry.latents, now.noise)
        latents = after_step(jnp.asarray(latents), now, maps)
        return Carry(latents, state, answers.carry()), prediction if record else None

    if carry.pieces is None:  # the first step reads none, but the scan needs their shapes
        after, _ = jax.eval_shape(step, carry, steps[0])
        # Any value that varies over every mesh axis: zeros_like of it has the device-varying type that the scan needs.
        varying = carry.latents[0, 0, 0, 0] * guidance.weights[0]
        blank = jax.tree.map(lambda x: jnp.zeros_like(varying, shape=x.shape, dtype=x.dtype), after.pieces)
        carry = dataclasses.replace(carry, pieces=blank)
    return lax.scan(step, carry, steps)
