"""The random numbers of a call, drawn for the whole picture in diffusers' order."""

import secrets
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from distrijax.checks import array_of, one_of, whole_number
from distrijax.errors import DistrijaxError
from distrijax.pipelines.output import Seed
from distrijax.runtime.agreement import same_everywhere
from distrijax.sampling.noise import GENERATORS, KeyGenerator, TorchGenerator, randn
from distrijax.schedulers import Schedule

Generators = list[TorchGenerator | KeyGenerator]


def make_generators(generator: Any, seed: Seed, noise: str, batch: int, dtype: DTypeLike) -> tuple[Generators, Seed]:
    """Return one generator for the whole batch or one for each picture, and the seed that recreates them.

    The arguments are those of a call, and the number of its pictures; without generator and seed, the seed is new.
    Numbers are drawn in the `dtype` of the U-Net, as in diffusers: torch draws others in half precision.
    """
    one_of("noise", noise, tuple(GENERATORS))
    if generator is not None and seed is not None:
        raise DistrijaxError("both generator and seed are given; they mean the same, so give one")
    if _is_key(generator):
        if noise != "jax":
            raise DistrijaxError('generator is a JAX key; its numbers are JAX\'s own, so pass noise="jax" as well')
        typed = jnp.issubdtype(generator.dtype, jax.dtypes.prng_key)
        keys = generator if typed else jax.random.wrap_key_data(generator)
        several = list(keys) if keys.ndim else [keys]
        _check_count("generators", len(several), batch, is_list=bool(keys.ndim))
        return [KeyGenerator.from_key(key, dtype) for key in several], None
    name = "seed" if generator is None else "generator"
    given: Any = seed if generator is None else generator
    if given is None:
        given = same_everywhere(secrets.randbits(32), "drawing a seed, having been given none")
    is_list = np.ndim(given) > 0 if isinstance(given, np.ndarray | Array) else isinstance(given, list | tuple)
    seeds = [_seed(name, each) for each in (given if is_list else [given])]
    _check_count("seeds", len(seeds), batch, is_list=is_list)
    return [GENERATORS[noise](each, dtype) for each in seeds], seeds if is_list else seeds[0]


def _is_key(generator: Any) -> bool:
    """Return whether this is a JAX key, or several, of the new or the old type."""
    if not isinstance(generator, Array):
        return False
    typed = jnp.issubdtype(generator.dtype, jax.dtypes.prng_key)
    return typed or (generator.dtype == jnp.uint32 and generator.ndim > 0)


def _seed(name: str, value: Any) -> int:
    """Return a whole number unchanged, and the seed of a `torch.Generator`, without importing torch."""
    if name == "generator" and hasattr(value, "initial_seed"):
        return int(value.initial_seed())
    try:
        return whole_number(name, value, -(2**63), 2**64 - 1)
    except DistrijaxError:
        also = " or a torch.Generator" if name == "generator" else ""
        key = '; a JAX key is passed as generator, with noise="jax"' if _is_key(value) else ""
        raise DistrijaxError(
            f"{name} is {value!r}; it must be a whole number from -2**63 to 2**64 - 1{also}, or a list of one for each "
            f"picture{key}"
        ) from None


def _check_count(what: str, count: int, batch: int, *, is_list: bool) -> None:
    if is_list and count != batch:
        raise DistrijaxError(f"{count} {what} for {batch} pictures; give one number, or a list of one for each")


def normal(generators: Generators, shape: tuple[int, ...], dtype: DTypeLike | None = None) -> np.ndarray:
    """Return noise [B, h, w, C] of this shape, drawn in diffusers' order of axes, and in `dtype` if there is one."""
    b, h, w, c = shape
    return randn(generators, (b, c, h, w), dtype).transpose(0, 2, 3, 1)


def initial_latents(
    generators: Generators, shape: tuple[int, ...], schedule: Schedule, latents: ArrayLike | None
) -> np.ndarray:
    """Return the initial latents, noise of the schedule's strength, [B, h, w, C].

    `shape` is (B, C, h, w), as in diffusers, and `latents` are unit-variance noise in place of random numbers.
    """
    start = randn(generators, shape) if latents is None else checked_latents(latents, shape)
    return start.transpose(0, 2, 3, 1) * np.float32(schedule.init_noise_sigma)


def step_noise(
    generators: Generators, shape: tuple[int, ...], schedule: Schedule, dtype: DTypeLike | None
) -> np.ndarray | None:
    """Return the noise of every step, [S, B, h, w, C], zero where a step draws none; None if no step draws any."""
    if not schedule.draws.any():
        return None
    nothing = np.zeros(shape, np.float32)
    noise = np.stack([randn(generators, shape, dtype) if draws else nothing for draws in schedule.draws])
    return noise.transpose(0, 1, 3, 4, 2)


def checked_latents(latents: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Return `latents` as fp32 on the host if they have this shape, (B, C, h, w)."""
    array = array_of("latents", latents).astype(np.float32)
    if array.shape != shape:
        raise DistrijaxError(f"latents have the shape {array.shape}; for this call it must be {shape}")
    return array
