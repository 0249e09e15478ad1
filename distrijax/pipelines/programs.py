"""The compiled programs of the pipeline: what each device does, and how whole arrays are cut for it.

All take their choices by name (`parallel`, `rows`, ...: hashable, part of what is compiled) and their arrays by place.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from distrijax.denoise import Carry, Guidance, Steps
from distrijax.denoise import denoise as denoise_locally
from distrijax.models.unet import Conditioning, UNet
from distrijax.models.vae import VAE
from distrijax.parallel.mesh import Parallel
from distrijax.parallel.pieces import Carried
from distrijax.parallel.rows import Rows
from distrijax.parallel.slabs import exchange
from distrijax.parallel.spread import OWN, spread
from distrijax.parallel.wire import MESH, Wire
from distrijax.runtime import xla_options
from distrijax.runtime.compile import Program, Report
from distrijax.schedulers import Scheduler

LATENTS = P("data", "patch")  # [B, h, W, C]
STEPS = Steps(rows=P(), timesteps=P(), noise=P(None, "data", "patch"))
GUIDANCE = Guidance(weights=P("cfg"), prompted=P("cfg"), rescale=P())
TEXT = P("cfg", "data")  # [branches, B, ...]
BRANCH = P(("data", "cfg"))  # each device's own, the same for all patches of a picture
CARRY = Carry(LATENTS, LATENTS, OWN)


def own(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[None], tree)


def of_own(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)


def condition(
    unet: UNet, context: Array, pooled: Array, time_ids: Array, guidance: Array | None, *, parallel: Parallel
) -> Conditioning:
    """`UNet.condition` of [branches, B, ...], every device for its own branches and pictures."""

    def local(unet: UNet, *text: Array | None) -> Conditioning:
        return own(unet.condition(*jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), text)))

    return spread(local, parallel, [P(), TEXT, TEXT, TEXT, TEXT], BRANCH)(unet, context, pooled, time_ids, guidance)


def denoise(
    unet: UNet,
    carry: Carry,
    steps: Steps,
    cond: Conditioning,
    guidance: Guidance,
    *,
    parallel: Parallel,
    rows: Rows,
    scheduler: Scheduler,
    displaced: bool,
    wire: Wire = MESH,
) -> tuple[Carry, Array]:
    """Some steps of one kind, synchronous (`carry.pieces` is None: they begin anew) or displaced.

    Returns the carry and the last timestep: a host that waits for it waits for nothing larger.
    """

    def local(unet: UNet, carry: Carry, steps: Steps, cond: Conditioning, guidance: Guidance) -> tuple[Carry, Array]:
        carry = Carry(carry.latents, carry.state, of_own(carry.pieces))
        each = exchange(parallel.mode, rows, displaced=displaced, wire=wire)
        carry, _ = denoise_locally(unet, carry, steps, of_own(cond), guidance, scheduler=scheduler, exchange=each)
        return Carry(carry.latents, carry.state, own(carry.pieces)), steps.timesteps[-1]

    specs = [P(), CARRY, STEPS, BRANCH, GUIDANCE]
    return spread(local, parallel, specs, (CARRY, P()))(unet, carry, steps, cond, guidance)


def denoising(name: str, report: Report) -> Program:
    """`denoise`, compiled: the carry is used up, and XLA told how to hide the transfers."""

    def options(*args: Any, parallel: Parallel, **_: Any) -> xla_options.Options:
        platform, groups = parallel.mesh.devices.flat[0].platform, parallel.data * parallel.cfg
        return xla_options.denoising(platform, **transfers(args[1].pieces, groups))

    static = ("parallel", "rows", "scheduler", "displaced", "wire")
    return Program(name, denoise, static=static, donated=("carry",), options=options, report=report)


def transfers(carried: Carried | None, groups: int) -> dict[str, Any]:
    """Return what `xla_options.denoising` asks, of the pieces that a step takes from the one before."""
    tokens = {} if carried is None else carried.tokens
    gathered = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tokens)) // groups
    return {"waits_only": carried is None, "gathered_bytes": gathered, "attentions": len(tokens)}


def crop(latents: Array, *, parallel: Parallel, height: int) -> Array:
    """The picture's rows of `latents`, whole on every device."""
    return lax.with_sharding_constraint(latents[:, :height], parallel.replicated)


def decode(vae: VAE, latents: Array, index: Array, *, parallel: Parallel, height: int) -> Array:
    """Pictures [data, H, W, 3] fp32 in [0, 1]: of each data group the one at `index`.

    One at a time: decoding needs far more memory than denoising, and a batch as many times as much.

    Args:
        latents: [B, >= height, W, C] as the U-Net has them; rows past `height` are padding.
    """
    rows = Rows(height, parallel.patch)
    px = exchange("full_sync", rows, displaced=False)(None)

    def local(vae: VAE, latents: Array, index: Array) -> Array:
        one = lax.dynamic_slice_in_dim(latents, index, 1)
        image = vae.decode(one / vae.config.scaling_factor, px).astype(jnp.float32)
        return jnp.clip(image / 2 + 0.5, 0, 1)

    image = spread(local, parallel, [P(), LATENTS, P()], LATENTS)(vae, rows.pad(latents[:, :height], 1), index)
    return lax.with_sharding_constraint(image[:, : height * vae.config.factor], parallel.replicated)


def encode(vae: VAE, image: Array, *, parallel: Parallel) -> tuple[Array, Array]:
    """Mean and log variance [B, h, w, C] of the latents of `image` [B, H, W, 3] in [-1, 1]; see `VAE.encode`."""
    height, factor = image.shape[1], vae.config.factor
    rows = Rows(height, parallel.patch, factor)
    px = exchange("full_sync", rows, displaced=False)(None)
    local = spread(lambda vae, image: vae.encode(image, px), parallel, [P(), LATENTS], LATENTS)
    moments = local(vae, rows.pad(image, 1))
    return jax.tree.map(lambda x: lax.with_sharding_constraint(x[:, : height // factor], parallel.replicated), moments)
