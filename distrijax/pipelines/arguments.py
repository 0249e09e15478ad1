"""What the denoising program takes, as shapes: to compile it without weights, or for devices that need not be there."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from distrijax.config import UNetConfig
from distrijax.denoise import Carry, Guidance, Steps
from distrijax.models.unet import UNet
from distrijax.nn.build import abstract
from distrijax.parallel.mesh import Parallel, cut, is_spec, spec_of_leaves
from distrijax.pipelines import programs
from distrijax.schedulers import Scheduler

TOKENS = 77  # of a prompt


def arguments(
    config: UNetConfig,
    parallel: Parallel,
    *,
    height: int,
    width: int,
    dtype: DTypeLike,
    guided: bool,
    pictures: int,
    steps: int,
    scheduler: Scheduler,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `programs.denoise` for its first steps, as shapes placed on the devices; and its choices.

    Args:
        height, width: of the latents.
        steps: that one call of the program takes.
    """
    parallel.check(pictures=pictures, guided=guided)
    rows = parallel.rows(height, config.row_multiple)
    branches = 2 if guided else 1

    def blank(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, np.float32)

    unet = placed(parallel, abstract(UNet, config, dtype), PartitionSpec())
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    text = (
        blank(branches, pictures, TOKENS, config.cross_attention_dim),
        blank(branches, pictures, pooled),
        blank(branches, pictures, 6),
        blank(branches, pictures, config.time_cond_proj_dim) if config.time_cond_proj_dim else None,
    )
    cond = jax.eval_shape(partial(programs.condition, parallel=parallel), unet, *placed(parallel, text, programs.TEXT))
    latents = blank(pictures, rows.slab * rows.patches, width, config.in_channels)
    schedule = scheduler.schedule(steps)
    noise = blank(steps, *latents.shape) if schedule.draws.any() else None
    carry = Carry(latents, jax.eval_shape(scheduler.init_state, latents))
    args = (
        unet,
        placed(parallel, carry, programs.CARRY),
        placed(parallel, Steps(schedule.rows, schedule.timesteps, noise), programs.STEPS),
        placed(parallel, cond, programs.BRANCH),
        placed(parallel, Guidance(blank(branches), blank(branches)), programs.GUIDANCE),
    )
    return args, {"parallel": parallel.compiled, "rows": rows, "scheduler": scheduler}


def placed(parallel: Parallel, tree: Any, specs: Any) -> Any:
    """Arrays of these shapes on the devices, each its part by `specs`, a prefix of `tree`."""

    def place(spec: PartitionSpec, x: Any) -> Any:
        sharding = NamedSharding(parallel.mesh, cut(spec, parallel.manual_axes))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, spec_of_leaves(specs, tree), tree, is_leaf=is_spec)
