"""Mean and variance of a group norm, against float64: with large means, in half precision, with rows of padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distrijax.nn.exchange import WHOLE, group_moments
from distrijax.nn.norm import GroupNorm

pytestmark = pytest.mark.fast

SHAPE, GROUPS = (2, 6, 16, 24), 4


def picture(dtype: str, mean: float, deviation: float) -> jax.Array:
    """Channels with means of their own, up to `mean` and as far below zero."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-mean, mean, SHAPE[-1]) + deviation * rng.standard_normal(SHAPE)
    return jnp.asarray(x, dtype)


def exact(x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    batch, *_, channels = x.shape
    grouped = np.asarray(x, np.float64).reshape(batch, -1, GROUPS, channels // GROUPS)
    return grouped.mean((1, 3)), grouped.var((1, 3))


def check(x: jax.Array, moments: tuple[jax.Array, jax.Array], limit: float) -> None:
    """The mean in units of the deviation, the variance in its own."""
    expected = exact(x)
    variance = expected[1].max()
    for found, known, unit in zip(moments, expected, (np.sqrt(variance), variance), strict=True):
        assert found.dtype == jnp.float32
        error = np.abs(np.asarray(found) - known).max() / unit
        print(f"{error:.1e}")
        assert error < limit


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_moments(dtype: str, mean: float) -> None:
    x = picture(dtype, mean, 1.0)
    check(x, group_moments(x, GROUPS), 1e-6)


def test_a_large_mean_in_fp32() -> None:
    """One and the same for all channels: E[x²] - E[x]² would be off by a half of the variance and more."""
    x = picture("float32", 0.0, 0.1) + 300
    check(x, group_moments(x, GROUPS), 1e-3)  # the mean itself is rounded by 3e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_large_mean_in_half_precision(dtype: str) -> None:
    """The least deviation that such numbers have: the variance is off by less than their rounding has made it."""
    x = picture(dtype, 0.0, 1.0) + 300
    check(x, group_moments(x, GROUPS), 0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_constant_pictures_are_normalised_to_nothing(dtype: str) -> None:
    """Their variance is zero, and by one pass some have less, of which there is no root."""
    x = jnp.broadcast_to(jnp.linspace(-1, 1, 64, dtype=dtype)[:, None, None, None], (64, 33, 47, 24))
    _, variance = group_moments(x, GROUPS)
    assert 0 <= variance.min() <= variance.max() < 1e-6
    y = GroupNorm(SHAPE[-1], GROUPS, eps=1e-5, dtype=dtype)(x, WHOLE)
    assert jnp.abs(y).max() < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [0, 1, 4, 6])
def test_rows_of_padding_count_for_nothing(dtype: str, rows: int) -> None:
    x = picture(dtype, 3.0, 1.0)
    padded = x.at[:, rows:].set(jnp.nan)
    moments = group_moments(padded, GROUPS, jnp.asarray(rows))
    if rows:
        check(x[:, :rows], moments, 1e-6)
    else:
        assert not any(jnp.abs(moment).max() for moment in moments)
