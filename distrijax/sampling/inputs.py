"""The inputs of the denoising program, built in one place: from arrays, or from shapes to compile without weights."""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from distrijax.config import UNetConfig
from distrijax.models.unet import Conditioning, UNet
from distrijax.nn.conv import order_kernels
from distrijax.nn.module import Weights, abstract
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.options import Parallel
from distrijax.parallel.placement import place
from distrijax.sampling import programs
from distrijax.sampling.denoise import EXTRA_CHANNELS, Carry, Maps, Steps
from distrijax.sampling.guidance import Guidance
from distrijax.sampling.persistence import persistence
from distrijax.schedulers import Schedule, Scheduler

Host = np.ndarray | jax.ShapeDtypeStruct

H = TypeVar("H", np.ndarray, jax.ShapeDtypeStruct, Host)

TOKENS = 77  # per prompt

ROWS, NOISY_ROWS = 128, 16
"""Steps of a placed table, whatever the number of steps, so that it compiles nothing; fewer where each step has noise,
which takes as much memory as the latents."""


class TextInputs(NamedTuple):
    """The U-Net's conditioning for all branches and pictures, in fp32 or the encoders' dtype.

    Attributes:
        context: hidden states of the text encoders, [branches, B, T, D].
        pooled: pooled text embeddings, [branches, B, P].
        time_ids: sizes in pixels, [branches, B, 6], or 5 for a refiner.
        guidance: embedding of the guidance scale [branches, B, E], for U-Nets that take it as an input.
    """

    context: Host
    pooled: Host
    time_ids: Host
    guidance: Host | None = None


class LoopInputs(NamedTuple):
    """The arguments of `programs.denoise`, placed on the devices.

    Attributes:
        steps: of the whole picture, on the host until `with_steps` places some.
        turns: first step to take in the placed tables, and the one after the last, int32 [2].
    """

    unet: Weights[UNet]
    carry: Carry
    steps: Steps
    turns: Array
    cond: Conditioning
    guidance: Guidance
    maps: Maps

    @property
    def rows(self) -> int:
        """The largest number of steps that can be placed at once."""
        return ROWS if self.steps.noise is None else NOISY_ROWS

    def with_steps(self, start: int, stop: int, parallel: Parallel) -> Self:
        """Return the inputs for a dispatch of these steps, with a table of them and of those that follow."""
        assert stop - start <= self.rows, (start, stop)

        def table(x: H) -> H:
            if isinstance(x, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct((self.rows, *x.shape[1:]), x.dtype)
            missing = max(0, start + self.rows - len(x))
            return np.pad(x[start : start + self.rows], [(0, missing), *[(0, 0)] * (x.ndim - 1)])

        placed = place(jax.tree.map(table, self.steps), programs.STEPS, parallel)
        return self._replace(steps=placed).with_turns(0, stop - start, parallel)

    def with_turns(self, start: int, stop: int, parallel: Parallel) -> Self:
        """Return the inputs for a dispatch of these steps of the placed table."""
        return self._replace(
            turns=_turns(start, stop, parallel, shapes=isinstance(self.steps.timesteps, jax.ShapeDtypeStruct))
        )


def loop_inputs(
    unet: Weights[UNet],
    text: TextInputs,
    latents: Host | Array,
    noise: Host | None,
    guidance: Guidance,
    schedule: Schedule,
    *,
    scheduler: Scheduler,
    parallel: Parallel,
    layout: SlabLayout,
    condition: Callable[..., Conditioning],
    maps: Mapping[str, Host] | None = None,
    previews: bool = False,
) -> LoopInputs:
    """Return the denoising program's first inputs, all placed except the steps; see `LoopInputs.with_steps`.

    Args:
        unet: weights on the devices, or shapes.
        text: on the host, or shapes, like the next two.
        latents: initial latents [B, h, W, C]; those on the devices are dealt to them already, with padding.
        noise: noise of every step, [S, B, h, W, C]; None if the schedule draws none.
        condition: `programs.condition`, compiled; `jax.eval_shape` of it for shapes.
        maps: [B, h, W, …], what every step sees beside the latents.
        previews: whether the carry keeps the clean latents that each step predicts.
    """
    rows: Any = latents if isinstance(latents, Array) else pad_rows(latents, layout, axis=1)
    state = jax.eval_shape(scheduler.init_state, jax.ShapeDtypeStruct(rows.shape, np.float32))
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    padded_noise = None if noise is None else pad_rows(noise, layout, axis=2)
    padded_maps: Any = {name: pad_rows(x, layout, axis=1) for name, x in (maps or {}).items()}
    coefficients = schedule.coefficients | (scheduler.denoised_factors(schedule) if previews else {})
    denoised: Any = np.zeros(rows.shape, np.float32) if previews else None
    steps: Any = Steps(coefficients, schedule.timesteps, padded_noise, persistence(schedule))  # type: ignore[arg-type]
    cond = condition(unet, *place(text, programs.TEXT, parallel), parallel=parallel.program_key)
    if isinstance(rows, jax.ShapeDtypeStruct):
        state, steps, guidance, denoised = jax.tree.map(_shape, (state, steps, guidance, denoised))
        cond = place(cond, programs.BRANCH, parallel)
    return LoopInputs(
        unet,
        place(Carry(rows, state, None, denoised), programs.CARRY, parallel),
        steps,
        np.zeros(2, np.int32),  # type: ignore[arg-type]  # until `with_steps`
        cond,
        place(guidance, programs.GUIDANCE, parallel),
        place(padded_maps, programs.LATENTS, parallel),
    )


def abstract_inputs(
    config: UNetConfig,
    *,
    parallel: Parallel,
    scheduler: Scheduler,
    height: int,
    width: int,
    channels: int = 4,
    dtype: DTypeLike = jnp.bfloat16,
    guided: bool = True,
    pictures: int = 1,
    tokens: int = TOKENS,
    time_ids: int = 6,
) -> tuple[LoopInputs, SlabLayout]:
    """Return `loop_inputs` as shapes, and the layout: to compile without weights, or for devices that are absent.

    Args:
        height: rows of latents.
        width: columns of latents.
        channels: of latents.
        guided: whether there are two guidance branches.
        pictures: pictures of a batch, on all devices together.
        time_ids: sizes that the U-Net is conditioned on: 6, or 5 for a refiner.

    Raises:
        DistrijaxError: the batch or the rows cannot be divided among the devices.
    """
    parallel.check(pictures=pictures, guided=guided)
    layout = parallel.layout(height, config.row_multiple)
    unet = abstract(UNet, config, dtype)
    order_kernels(unet, parallel.kernel_order)
    text, latents = input_shapes(
        config, guided=guided, pictures=pictures, height=height, width=width, channels=channels, tokens=tokens,
        time_ids=time_ids,
    )  # fmt: skip
    maps = map_shapes(config, latents)
    schedule = scheduler.schedule(5)  # any number compiles the same
    noise = jax.ShapeDtypeStruct((len(schedule), *latents.shape), np.float32) if schedule.draws.any() else None
    inputs = loop_inputs(
        place(Weights.of(unet), P(), parallel),
        text,
        latents,
        noise,
        Guidance.of(5.0 if guided else None),
        schedule,
        scheduler=scheduler,
        parallel=parallel,
        layout=layout,
        condition=lambda *args, parallel: jax.eval_shape(partial(programs.condition, parallel=parallel), *args),
        maps=maps,
    )
    return inputs.with_steps(0, 1, parallel), layout


def input_shapes(
    config: UNetConfig,
    *,
    guided: bool,
    pictures: int,
    height: int,
    width: int,
    channels: int = 4,
    tokens: int = TOKENS,
    time_ids: int = 6,
) -> tuple[TextInputs, jax.ShapeDtypeStruct]:
    """Return the shapes of a call's conditioning and latents; arguments as in `abstract_inputs`."""
    lead = (2 if guided else 1), pictures
    pooled = config.projection_class_embeddings_input_dim - time_ids * config.addition_time_embed_dim
    guidance = config.time_cond_proj_dim

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, np.float32)

    text = TextInputs(
        shape(*lead, tokens, config.cross_attention_dim),
        shape(*lead, pooled),
        shape(*lead, time_ids),
        shape(*lead, guidance) if guidance else None,
    )
    return text, shape(pictures, height, width, channels)


def map_shapes(config: UNetConfig, latents: H) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape of what a U-Net sees beside the latents, if it has inputs for more, as for inpainting."""
    extra = config.in_channels - latents.shape[-1]
    shape = jax.ShapeDtypeStruct((*latents.shape[:-1], extra), np.float32)
    return {EXTRA_CHANNELS: shape} if extra else {}


def pad_rows(x: H, layout: SlabLayout, axis: int) -> H:
    """Return a host array, or a shape, with the rows of padding added."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((*x.shape[:axis], layout.padded_height, *x.shape[axis + 1 :]), x.dtype)
    return np.pad(x, [(0, layout.padding if i == axis else 0) for i in range(x.ndim)])


@lru_cache(maxsize=256)
def _turns(start: int, stop: int, parallel: Parallel, *, shapes: bool) -> Array:
    """Return the placed numbers of two steps, which every picture needs again: placing them takes 0.1 ms."""
    turns = np.array([start, stop], np.int32)
    placed: Any = place(_shape(turns) if shapes else turns, P(), parallel)
    return placed


def _shape(x: np.ndarray | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
