"""torch's CPU random sequence without torch: the same seed gives the same noise as `torch.Generator("cpu")`.

torch's generator is a 32-bit Mersenne Twister (MT19937), seeded with the low 32 bits of the seed. `torch.randn`
turns its outputs into normal numbers in one of two ways (ATen/native/cpu/DistributionTemplates.h, `normal_fill` and
ATen/core/DistributionsHelper.h, `normal_distribution`), both of them the Box-Muller transform:

- 16 numbers or more: the low 24 bits of one output per number give float32 uniform numbers u; in each block of 16, the
  first eight give the radius sqrt(-2 log(1 - u)), the last eight the angle 2 pi u. If the count is not a multiple of
  16, the last 16 numbers, some of them already transformed, are overwritten by a fresh block.
- fewer: pairs of 53-bit uniform numbers, in float64; the second normal number of a pair is kept for the next draw,
  even across larger draws in between.

float16 and bfloat16 numbers are the same, rounded, except that for 16 or more, not a multiple of 16, the outputs that
float32 uses for the overwritten numbers are not drawn. The float32 values differ from torch 2.13's by at most
3 ulp (5e-7) on a processor with AVX2, and by 2.4e-6 on one without, where torch uses other functions.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from distrijax.errors import DistrijaxError

_DTYPES = tuple(np.dtype(kind) for kind in (np.float32, np.float16, jnp.bfloat16))


class TorchGenerator:
    """The equivalent of `torch.Generator("cpu").manual_seed(seed)`.

    Args:
        seed: from -2**63 to 2**64 - 1. torch uses its low 32 bits only; negative ones count down from 2**64.
        dtype: of the numbers unless `randn` is given another, float32, float16 or bfloat16.

    Raises:
        DistrijaxError: the seed is not a whole number, or outside torch's range.
    """

    def __init__(self, seed: int, dtype: np.typing.DTypeLike = np.float32) -> None:
        try:
            seed = operator.index(seed)
        except TypeError:
            raise DistrijaxError(f"the seed must be a whole number, got {seed!r}") from None
        if not -(2**63) <= seed < 2**64:
            raise DistrijaxError(f"the seed must be from -2**63 to 2**64 - 1, got {seed}")
        # RandomState seeds with the init_genrand of the original MT19937, like torch; MT19937 by itself does not
        state: Any = np.random.RandomState(seed % 2**32).get_state(legacy=False)
        self._bits = np.random.MT19937()
        self._bits.state = state
        self._kept: float | None = None
        self.dtype = np.dtype(dtype)

    def randn(self, shape: Sequence[int], dtype: np.typing.DTypeLike | None = None) -> np.ndarray:
        """Return `torch.randn(shape, generator=self, dtype=dtype)`; the sequence advances as torch's does.

        Args:
            shape: in torch's order, [B, C, H, W] for latents: the order in memory is the order of the sequence.
            dtype: float32, float16 or bfloat16; by default the generator's own.

        Returns:
            Array of that shape and dtype.
        """
        dtype = self.dtype if dtype is None else dtype
        if np.dtype(dtype) not in _DTYPES:
            supported = ", ".join(map(str, _DTYPES))
            raise DistrijaxError(f"noise of dtype {np.dtype(dtype)} is not supported; supported: {supported}")
        count = math.prod(shape)
        numbers = self._few(count) if count < 16 else self._many(count, np.dtype(dtype) == np.float32)
        return numbers.astype(dtype).reshape(shape)

    def _uniform(self, count: int) -> np.ndarray:
        """Return uniform numbers in [0, 1), multiples of 2**-24: float32 [count]."""
        return (self._bits.random_raw(count) & (2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)

    def _many(self, count: int, draws_tail: bool) -> np.ndarray:
        whole = count // 16 * 16
        numbers = np.empty(count, np.float32)
        numbers[:whole] = _box_muller(self._uniform(whole))
        if whole != count:
            if draws_tail:
                self._bits.random_raw(count - whole)
            numbers[-16:] = _box_muller(self._uniform(16))
        return numbers

    def _few(self, count: int) -> np.ndarray:
        numbers = np.empty(count)
        for index in range(count):
            if self._kept is not None:
                numbers[index], self._kept = self._kept, None
                continue
            high_1, low_1, high_2, low_2 = (int(word) for word in self._bits.random_raw(4))
            angle = 2 * math.pi * (((high_1 << 32 | low_1) & (2**53 - 1)) * 2.0**-53)
            radius = math.sqrt(-2 * math.log1p(-((high_2 << 32 | low_2) & (2**53 - 1)) * 2.0**-53))
            numbers[index], self._kept = radius * math.cos(angle), radius * math.sin(angle)
        return numbers


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """Return normal numbers from uniform ones in blocks of 16, every step rounded to float32: float32 [count]."""
    blocks = uniform.reshape(-1, 2, 8)
    logarithm = np.log((np.float32(1) - blocks[:, 0]).astype(np.float64)).astype(np.float32)
    radius = np.sqrt(np.float32(-2) * logarithm)
    # torch rounds the angle to float32 before its sine: at 2 pi that is 2e-7, more than any other rounding here
    angle = (np.float32(2 * math.pi) * blocks[:, 1]).astype(np.float64)
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return np.stack([radius * cosine, radius * sine], axis=1).reshape(-1)


class KeyGenerator:
    """JAX's own random numbers, drawn on the device from `jax.random.key(seed)`; pictures differ from torch's.

    Args:
        seed: from -2**63 to 2**64 - 1; all 64 bits count.
        dtype: of the numbers unless `randn` is given another.
    """

    def __init__(self, seed: int, dtype: np.typing.DTypeLike = np.float32) -> None:
        if not -(2**63) <= seed < 2**64:
            raise DistrijaxError(f"the seed must be from -2**63 to 2**64 - 1, got {seed}")
        low, high = seed % 2**32, (seed >> 32) % 2**32  # JAX itself drops the upper half unless x64 is enabled
        self._key = jax.random.fold_in(jax.random.key(np.uint32(low)), np.uint32(high))
        self.dtype = np.dtype(dtype)

    @classmethod
    def from_key(cls, key: Array, dtype: np.typing.DTypeLike = np.float32) -> Self:
        """Return the generator of a typed key, such as `jax.random.key` makes."""
        self = cls.__new__(cls)
        self._key, self.dtype = key, np.dtype(dtype)
        return self

    def randn(self, shape: Sequence[int], dtype: np.typing.DTypeLike | None = None) -> np.ndarray:
        """Return normal numbers of that shape and dtype; the next call returns others."""
        self._key, key = jax.random.split(self._key)
        return np.asarray(jax.random.normal(key, tuple(shape), jnp.float32)).astype(
            self.dtype if dtype is None else dtype
        )


GENERATORS: dict[str, type[TorchGenerator] | type[KeyGenerator]] = {"torch": TorchGenerator, "jax": KeyGenerator}


def randn(
    generators: Sequence[TorchGenerator | KeyGenerator],
    shape: Sequence[int],
    dtype: np.typing.DTypeLike | None = None,
) -> np.ndarray:
    """Return noise for a batch as diffusers' `randn_tensor` draws it, in float32.

    Args:
        generators: one for the whole batch, or one for each picture.
        shape: [B, ...] in torch's order.
        dtype: to draw and round the numbers in; by default the generators' own.
    """
    if len(generators) == 1:
        return generators[0].randn(shape, dtype).astype(np.float32)
    if len(generators) != shape[0]:
        raise DistrijaxError(
            f"{len(generators)} generators for a batch of {shape[0]}: give one, or one for each picture"
        )
    noise = [generator.randn((1, *shape[1:]), dtype) for generator in generators]
    return np.concatenate(noise).astype(np.float32)
