"""The denoising loop, as one device runs it."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from distrijax.models.unet import Conditioning, UNet
from distrijax.nn.exchange import Exchange
from distrijax.parallel.messages import Carried, Persistence
from distrijax.sampling.guidance import Guidance, guide
from distrijax.schedulers import Scheduler
from distrijax.schedulers.predictions import combine


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
        pieces: what the exchange carries; None if no step is to read it.
        denoised: the clean latents that the last step predicted, for previews; None if nobody asks.
    """

    latents: Array
    state: tuple[Array, ...]
    pieces: Carried | None = None
    denoised: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Steps:
    """The inputs that differ from step to step: tables with the steps as their first axis.

    Attributes:
        coefficients: the scheduler's, by name, fp32 [S] each.
        timesteps: the U-Net's time inputs, [S].
        noise: [S, B, h, W, C]; None if no step draws any.
        persistence: the share of a step's changes that is expected to happen again, fp32 [S] each.
    """

    coefficients: Mapping[str, Array]
    timesteps: Array
    noise: Array | None
    persistence: Persistence

    def at(self, step: Array | int) -> "Steps":
        """Return the inputs of one step."""
        return jax.tree.map(
            lambda x: lax.dynamic_index_in_dim(x, step, keepdims=False, allow_negative_indices=False), self
        )


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
    turns: Array,
    cond: Conditioning,
    guidance: Guidance,
    maps: Maps,
    *,
    scheduler: Scheduler,
    exchange: Callable[[Carried | None, Persistence], StepExchange],
    after_step: AfterStep = keep_latents,
    record: bool = False,
) -> tuple[Carry, Array | None]:
    """Take denoising steps with this device's rows, guidance branches and pictures.

    The number of steps is an argument, so one program serves any number, and pictures do not depend on how their steps
    are divided among calls. On a GPU, the host reads the loop's condition in every step.

    Args:
        turns: first step to take in the tables, and the one after the last, int32 [2].
        cond: conditioning of `branches * B` pictures, all of the first branch first.
        maps: what every step sees beside the latents.
        exchange: makes each step's exchange object from what the previous step kept.
        after_step: changes the latents after each step; elementwise, so that nothing more is sent.
        record: whether to return every step's predictions.

    Returns:
        The carry after the last step, and the predictions [S, branches, B, h, W, C] before guidance, if recorded: zeros
        for steps that are not taken.
    """

    @partial(jax.jit, inline=True)  # traced once, for the shapes of its results and for the loop: 2 to 4 s for SDXL
    def step(carry: Carry, now: Steps) -> tuple[Carry, Array]:
        answers = exchange(carry.pieces, now.persistence)
        branches = jnp.ones_like(guidance.weights)[:, None, None, None, None]  # those of this device
        x = branches * scheduler.scale_model_input(now.coefficients, carry.latents)[None]  # [branches, B, h, W, C]
        seen = x
        if EXTRA_CHANNELS in maps:
            seen = jnp.concatenate([x, branches * maps[EXTRA_CHANNELS][None]], -1)
        prediction = unet(seen.reshape(-1, *seen.shape[2:]), now.timesteps, cond, answers)
        prediction = prediction.astype(jnp.float32).reshape(x.shape)
        guided = guide(prediction, guidance, answers)
        denoised = None
        if carry.denoised is not None:
            factors = (now.coefficients[f"denoised_{name}"] for name in ("sample", "prediction"))
            denoised = combine(*zip(factors, (carry.latents, guided), strict=True))
        latents, state = scheduler.step(now.coefficients, carry.state, guided, carry.latents, now.noise)
        latents = after_step(jnp.asarray(latents), now, maps)
        return Carry(latents, state, answers.carry(), denoised), prediction

    def turn(i: Array, state: tuple[Carry, Array | None]) -> tuple[Carry, Array | None]:
        carry, seen = state
        before = carry if reads else dataclasses.replace(carry, pieces=None)
        carry, prediction = step(before, steps.at(i))
        return carry, None if seen is None else seen.at[i].set(prediction)

    # Any value that varies over every mesh axis: zeros_like of it has the device-varying type that the loop needs.
    varying = carry.latents[0, 0, 0, 0] * guidance.weights[0]
    reads, seen = carry.pieces is not None, None
    if not reads or record:  # the loop needs the shapes of these
        after, prediction = jax.eval_shape(step, carry, steps.at(0))
        if not reads:
            blank = jax.tree.map(lambda x: jnp.zeros_like(varying, shape=x.shape, dtype=x.dtype), after.pieces)
            carry = dataclasses.replace(carry, pieces=blank)
        if record:
            seen = jnp.zeros_like(varying, shape=(len(steps.timesteps), *prediction.shape))
    return lax.fori_loop(turns[0], turns[1], turn, (carry, seen))
