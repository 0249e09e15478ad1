"""torch's CPU random sequence without torch: the same seed gives the same noise as `torch.Generator("cpu")`.

A generator of torch is a 32-bit Mersenne Twister (MT19937), seeded with the low 32 bits of the seed. `torch.randn` turns
its outputs into normal numbers in one of two ways (ATen/native/cpu/DistributionTemplates.h, `normal_fill` and
`normal_distribution`), both of them the Box-Muller transform:

- 16 numbers or more: one output per number gives uniform numbers u of as many bits as the dtype's significand has; in
  each block of 16, the first eight give the radius sqrt(-2 log(1 - u)), the last eight the angle 2 pi u. If the count is
  not a multiple of 16, the last 16 numbers, some of them already transformed, are overwritten by a fresh block.
- fewer: pairs of 53-bit uniform numbers, in float64; the second normal number of a pair is kept for the next draw,
  even across larger draws in between.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from distrijax.errors import DistrijaxError

_DIGITS = {np.dtype(np.float32): 24, np.dtype(np.float16): 11, np.dtype(ml_dtypes.bfloat16): 8}
"""Bits of a significand, the hidden one included: torch fills them with the low bits of one Mersenne Twister output."""


class TorchGenerator:
    """`torch.Generator("cpu").manual_seed(seed)`.

    Args:
        seed: from -2**63 to 2**64 - 1. torch uses its low 32 bits only; negative ones count down from 2**64.

    Raises:
        DistrijaxError: the seed is not a whole number, or outside torch's range.
    """

    def __init__(self, seed: int) -> None:
        try:
            seed = operator.index(seed)
        except TypeError:
            raise DistrijaxError(f"the seed must be a whole number, got {seed!r}") from None
        if not -(2**63) <= seed < 2**64:
            raise DistrijaxError(f"the seed must be from -2**63 to 2**64 - 1, got {seed}")
        self._bits = np.random.MT19937()
        # RandomState seeds with the init_genrand of the original MT19937, like torch; MT19937 by itself does not
        _, key, position, *_ = np.random.RandomState(seed % 2**32).get_state(legacy=True)
        self._bits.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": position}}
        self._kept: float | None = None

    def randn(self, shape: Sequence[int], dtype: np.typing.DTypeLike = np.float32) -> np.ndarray:
        """`torch.randn(shape, generator=self, dtype=dtype)`, and the sequence moves on as torch's does.

        float16 and bfloat16 are not rounded float32 draws: torch makes them from fewer bits and rounds every
        intermediate result.

        Args:
            shape: in torch's order, [B, C, H, W] for latents: the order in memory is the order of the sequence.
            dtype: float32, float16 or bfloat16.

        Returns:
            Array of that shape and dtype.
        """
        kind = np.dtype(dtype)
        if kind not in _DIGITS:
            raise DistrijaxError(f"noise of dtype {kind} is not supported; supported: float32, float16, bfloat16")
        count = math.prod(shape)
        numbers = self._few(count) if count < 16 else self._many(count, kind)
        return numbers.astype(kind).reshape(shape)

    def _uniform(self, count: int, dtype: np.dtype) -> np.ndarray:
        """Uniform numbers in [0, 1), multiples of 2**-digits -> [count]."""
        digits = _DIGITS[dtype]
        raw = self._bits.random_raw(count).astype(np.uint32) & np.uint32(2**digits - 1)
        return (raw.astype(np.float32) * np.float32(2.0**-digits)).astype(dtype)

    def _many(self, count: int, dtype: np.dtype) -> np.ndarray:
        numbers = self._uniform(count, dtype)
        whole = count // 16 * 16
        numbers[:whole] = _box_muller(numbers[:whole])
        if whole != count:
            numbers[-16:] = _box_muller(self._uniform(16, dtype))
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
    """Normal numbers from uniform ones in blocks of 16, every step rounded to their dtype -> same shape and dtype."""
    dtype = uniform.dtype
    blocks = uniform.reshape(-1, 2, 8)

    def rounded(x: np.ndarray) -> np.ndarray:
        return x.astype(dtype).astype(np.float64)

    u = blocks.astype(np.float64)
    radius = rounded(np.sqrt(rounded(-2 * rounded(np.log(rounded(1 - u[:, 0]))))))
    angle = rounded(np.float64(np.float32(2 * math.pi)) * u[:, 1])
    pairs = np.stack([radius * rounded(np.cos(angle)), radius * rounded(np.sin(angle))], axis=1)
    return pairs.astype(dtype).reshape(uniform.shape)


def randn(generators: Sequence[TorchGenerator], shape: Sequence[int]) -> np.ndarray:
    """Noise for a batch, as diffusers' `randn_tensor` draws it -> float32 of that shape.

    Args:
        generators: one for the whole batch, or one for each picture.
        shape: [B, ...] in torch's order.
    """
    if len(generators) == 1:
        return generators[0].randn(shape)
    if len(generators) != shape[0]:
        raise DistrijaxError(f"{len(generators)} generators for a batch of {shape[0]}; give one, or one for each picture")
    return np.concatenate([generator.randn((1, *shape[1:])) for generator in generators])
