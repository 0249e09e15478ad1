"""The denoising loop."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from distrijax.models.unet import Conditioning, UNet
from distrijax.parallel.exchange import Exchange
from distrijax.schedulers import Scheduler


class Link(Exchange, Protocol):
    """An exchange object of one step, and what it leaves for the next step's."""

    def carry(self) -> Any: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carry:
    """What one step hands to the next. Every device has its own rows of it, from the first step to the last."""

    latents: Any  # [B, h, W, C] fp32
    state: Any  # what the scheduler remembers of earlier steps, shaped like the latents
    pieces: Any = None  # what the exchange object carries; None before the first step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Steps:
    """What differs from step to step; every array has the steps as its first axis."""

    rows: Any  # the scheduler's coefficients by name, [S]
    timesteps: Any  # as the U-Net is told them, [S]
    noise: Any  # [S, B, h, W, C]; None if no step draws any

    def __getitem__(self, part: slice | int) -> "Steps":
        return jax.tree.map(lambda x: x[part], self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (arXiv 2207.12598): arguments of the program, so that a change compiles nothing.

    The branches are the predictions without the prompt and with it, [1 - scale, scale]; or with it alone, [1].
    """

    weights: Any  # of each branch in the sum, [branches]
    prompted: Any  # 1 for the branch with the prompt, 0 for the other, [branches]
    rescale: Any = None  # 0 to 1, arXiv 2305.08891, section 3.4; None is 0, and costs nothing


def denoise(
    unet: UNet,
    carry: Carry,
    steps: Steps,
    cond: Conditioning,
    guidance: Guidance,
    *,
    scheduler: Scheduler,
    exchange: Callable[[Any], Link],
    watch: Callable[[Array], Any] = lambda prediction: None,
) -> tuple[Carry, Any]:
    """Take some denoising steps with this device's rows, guidance branches and pictures.

    Args:
        cond: of `branches * B` pictures, all of the first branch first.
        exchange: makes each step's exchange object, of what the step before left.
        watch: what to keep of every step's prediction [branches, B, h, W, C].

    Returns:
        The carry after the last step, and what was watched, [S, ...].
    """

    def step(carry: Carry, now: Steps) -> tuple[Carry, Any]:
        px = exchange(carry.pieces)
        branches = jnp.ones_like(guidance.weights)[:, None, None, None, None]  # those of this device
        x = branches * scheduler.scale_model_input(now.rows, carry.latents)[None]  # [branches, B, h, W, C]
        prediction = unet(x.reshape(-1, *x.shape[2:]), now.timesteps, cond, px).astype(jnp.float32).reshape(x.shape)
        guided = guide(prediction, guidance, px)
        latents, state = scheduler.step(now.rows, carry.state, guided, carry.latents, now.noise)
        return Carry(latents, state, px.carry()), watch(prediction)

    if carry.pieces is None:  # the first step reads none, but a scan wants their shapes
        after = jax.eval_shape(step, carry, steps[0])[0]
        own = carry.latents[0, 0, 0, 0] * guidance.weights[0]  # as pieces are: another one on every device
        blank = jax.tree.map(lambda x: jnp.zeros_like(own, shape=x.shape, dtype=x.dtype), after.pieces)
        carry = dataclasses.replace(carry, pieces=blank)
    return lax.scan(step, carry, steps)


def guide(predictions: Array, guidance: Guidance, px: Exchange) -> Array:
    """One prediction [B, h, W, C] from those of the branches [branches, B, h, W, C], some here, some elsewhere."""

    def weigh(weights: Array, x: Array) -> Array:
        # One by one: under three nested `vmap`s a sum over the axis is one of those that XLA gets wrong (see `spread`).
        return lax.psum(sum(weight * part for weight, part in zip(weights, x, strict=True)), "cfg")

    guided = weigh(guidance.weights, predictions)
    if guidance.rescale is None:
        return guided
    # Back to the deviation of the prediction with the prompt alone, over the whole picture.
    _, own = px.moments("guidance.prompted", predictions.reshape(-1, *predictions.shape[2:]), 1)
    target = weigh(guidance.prompted, own.reshape(predictions.shape[:2]))  # [B]
    _, actual = px.moments("guidance.guided", guided, 1)  # [B, 1]
    ratio = jnp.sqrt(target / actual[:, 0])[:, None, None, None]
    return guided * (guidance.rescale * ratio + (1 - guidance.rescale))
