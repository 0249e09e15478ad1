"""The compiled programs: the computation of each device, and the sharding of its arrays.

All take arrays as positional arguments, and static hashable choices (`parallel`, `layout`, …) as keyword arguments.
"""

import dataclasses
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from distrijax.models.autoencoder_tiny import Autoencoder
from distrijax.models.unet import Conditioning, UNet
from distrijax.nn.module import Weights
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.messages import Carried
from distrijax.parallel.options import Parallel
from distrijax.parallel.phases import SYNCHRONOUS, Phase
from distrijax.parallel.placement import sharding_of
from distrijax.parallel.spread import PER_DEVICE, spread
from distrijax.parallel.transport import MESH, Transport
from distrijax.runtime import xla_options
from distrijax.runtime.compile import Program, Report
from distrijax.runtime.xla_options import Options
from distrijax.sampling.denoise import AfterStep, Carry, Maps, Steps, keep_latents
from distrijax.sampling.denoise import denoise as denoise_locally
from distrijax.sampling.guidance import Guidance
from distrijax.schedulers import Scheduler

T = TypeVar("T")

LATENTS = P("data", "patch")  # [B, h, W, C]
TEXT = P("cfg", "data")  # [branches, B, ...]
BRANCH = P(("data", "cfg"))  # each device's own, the same for all patches of a picture
STEPS = Steps(coefficients=P(), timesteps=P(), noise=P(None, "data", "patch"), persistence=P())  # type: ignore[arg-type]
GUIDANCE = Guidance(weights=P("cfg"), prompted=P("cfg"), rescale=P())  # type: ignore[arg-type]
CARRY = Carry(LATENTS, LATENTS, PER_DEVICE, LATENTS)  # type: ignore[arg-type]


def condition(
    unet: Weights[UNet],
    context: Array,
    pooled: Array,
    time_ids: Array,
    guidance: Array | None,
    *,
    parallel: Parallel,
) -> Conditioning:
    """Apply `UNet.condition` to text inputs [branches, B, ...], on every device for its own branches and pictures."""

    def local(unet: Weights[UNet], *text: Array | None) -> Conditioning:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), text)
        return _add_device_axis(unet.module().condition(*flat))

    return spread(local, parallel, [P(), TEXT, TEXT, TEXT, TEXT], BRANCH)(unet, context, pooled, time_ids, guidance)


def denoise(
    unet: Weights[UNet],
    carry: Carry,
    steps: Steps,
    turns: Array,
    cond: Conditioning,
    guidance: Guidance,
    maps: Maps,
    *,
    parallel: Parallel,
    layout: SlabLayout,
    scheduler: Scheduler,
    phase: Phase,
    transport: Transport = MESH,
    after_step: AfterStep = keep_latents,
    record: bool = False,
) -> tuple[Carry, Array, Array | None]:
    """Take some steps of one phase, none of which reads what a step before it left if `carry.pieces` is None.

    Returns:
        The carry; whether its latents are finite, which also tells that the steps have ended; and every step's
        predictions [S, branches, B, h, W, C] before guidance, if `record` is true.
    """

    def local(
        unet: Weights[UNet],
        carry: Carry,
        steps: Steps,
        turns: Array,
        cond: Conditioning,
        guidance: Guidance,
        maps: Maps,
    ) -> tuple[Carry, Array | None]:
        carry, predictions = denoise_locally(
            unet.module(),
            dataclasses.replace(carry, pieces=_drop_device_axis(carry.pieces)),
            steps,
            turns,
            _drop_device_axis(cond),
            guidance,
            maps,
            scheduler=scheduler,
            exchange=phase.exchange(layout, transport),
            after_step=after_step,
            record=record,
        )
        return dataclasses.replace(carry, pieces=_add_device_axis(carry.pieces)), predictions

    in_specs = [P(), CARRY, STEPS, P(), BRANCH, GUIDANCE, LATENTS]
    out_specs = CARRY, P(None, "cfg", "data", "patch")
    every = spread(local, parallel, in_specs, out_specs)
    carry, predictions = every(unet, carry, steps, turns, cond, guidance, maps)
    padding = jnp.arange(carry.latents.shape[1])[None, :, None, None] >= layout.height
    finite = jnp.isfinite(carry.latents) | padding
    return carry, lax.with_sharding_constraint(finite.all(), parallel.replicated), predictions


def first_pieces(*inputs: Any, parallel: Parallel, **choices: Any) -> Carried:
    """Return pieces of zeros for the first step of a policy that predicts, with the arguments of `denoise`.

    All dispatches of synchronous steps then run the same program, and each passes its pieces on to the next.
    """
    carry, _, _ = jax.eval_shape(partial(denoise, parallel=parallel, **choices), *inputs)
    sharding = sharding_of(PER_DEVICE, parallel)
    return jax.tree.map(lambda x: lax.with_sharding_constraint(jnp.zeros(x.shape, x.dtype), sharding), carry.pieces)


def denoising(name: str, report: Report) -> Program:
    """Return `denoise` as a program that donates the carry, with XLA options that hide the transfers.

    Args:
        name: name in messages.
        report: called with each message.
    """
    static = ("parallel", "layout", "scheduler", "phase", "transport", "after_step", "record")
    return Program(name, denoise, static=static, donated=("carry",), options=denoising_options, report=report)


def denoising_options(
    unet: Weights[UNet], carry: Carry, *rest: object, parallel: Parallel, phase: Phase, **choices: object
) -> Options:
    """Return XLA's options for `denoise` with these arguments, which depend on the policy of the phase."""
    tokens = {} if carry.pieces is None or not phase.policy.carries else carry.pieces.tokens
    gathered = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tokens)) // (parallel.data * parallel.cfg)
    return xla_options.denoising(
        parallel.mesh.devices.flat[0].platform,
        waits_only=not phase.policy.carries,
        gathered_bytes=gathered if phase.policy.attention.sends else 0,
        attentions=len(tokens),
    )


def crop(latents: Array, *, parallel: Parallel, height: int) -> Array:
    """Return the picture's rows of `latents`, replicated on every device."""
    return lax.with_sharding_constraint(latents[:, :height], parallel.replicated)


def deal(latents: Array, *, parallel: Parallel, layout: SlabLayout) -> Array:
    """Return latents [B, >= height, W, C] with their rows dealt to the devices by another layout."""
    return lax.with_sharding_constraint(layout.pad(latents[:, : layout.height], 1), sharding_of(LATENTS, parallel))


def end_guidance(pieces: Carried, *, parallel: Parallel) -> Carried:
    """Return what the exchange carries without the first of two guidance branches, which all devices hold."""

    def local(pieces: Carried) -> Carried:
        return _add_device_axis(_drop_device_axis(pieces).second_half())

    return spread(local, parallel, [PER_DEVICE], PER_DEVICE)(pieces)


def decode(
    vae: Weights[Autoencoder], latents: Array, index: Array, *, parallel: Parallel, height: int
) -> tuple[Array, Array]:
    """Decode one picture of each data group.

    More at a time would take memory in proportion: decoding needs far more of it than denoising.

    Args:
        latents: [B, >= height, W, C] in the U-Net's scale; rows past `height` are padding.
        index: index of the picture in each group.

    Returns:
        Pictures [data, H, W, 3], fp32 in [0, 1], and whether they were finite before they were clipped.
    """
    layout = SlabLayout(height, parallel.patch)
    exchange = SYNCHRONOUS.exchange(layout)(None)

    def local(weights: Weights[Autoencoder], latents: Array, index: Array) -> Array:
        vae = weights.module()
        one = lax.dynamic_slice_in_dim(latents, index, 1)
        return vae.decode(one, exchange).astype(jnp.float32)

    config = vae.module().config
    padded = layout.pad(config.from_unet(latents[:, :height]), 1)  # rows of padding are zeros for the VAE
    image = spread(local, parallel, [P(), LATENTS, P()], LATENTS)(vae, padded, index)
    image = image[:, : height * config.scale_factor]
    results = jnp.clip(image / 2 + 0.5, 0, 1), jnp.isfinite(image).all()
    return lax.with_sharding_constraint(results, parallel.replicated)


def encode(vae: Weights[Autoencoder], image: Array, *, parallel: Parallel) -> tuple[Array, Array | None]:
    """Return mean and log variance of the latents [B, h, w, C] of `image` [B, H, W, 3] in [-1, 1]; see `VAE.encode`.

    Those of a tiny autoencoder have no variance: it is None.
    """
    height, scale_factor = image.shape[1], vae.module().config.scale_factor
    layout = SlabLayout(height, parallel.patch, scale_factor)
    exchange = SYNCHRONOUS.exchange(layout)(None)

    def local(vae: Weights[Autoencoder], image: Array) -> tuple[Array, Array | None]:
        return vae.module().encode(image, exchange)

    moments = spread(local, parallel, [P(), LATENTS], LATENTS)(vae, layout.pad(image, 1))
    rows = height // scale_factor
    return jax.tree.map(lambda x: lax.with_sharding_constraint(x[:, :rows], parallel.replicated), moments)


def _add_device_axis(tree: T) -> T:
    return jax.tree.map(lambda x: x[None], tree)


def _drop_device_axis(tree: T) -> T:
    return jax.tree.map(lambda x: x[0], tree)
