"""GELUs that a card may compute in less time than the exact one in fp32, and how far each is from it.

python benchmarks/gpu/gelus.py    # over all numbers of bf16
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array, lax

Activation = Callable[[Array], Array]


def gelu_exp(x: Array) -> Array:
    """Return GELU by formula 7.1.26 of Abramowitz and Stegun: one exponential, one division, errors of 4e-7."""
    y = x.astype(jnp.float32)
    z = jnp.abs(y) * 0.5**0.5
    t = 1 / (1 + 0.3275911 * z)
    tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = tail * jnp.exp(-z * z) / 2  # of a normal distribution, beyond |y|
    return (y * jnp.where(y < 0, tail, 1 - tail)).astype(x.dtype)


def gelu_tanh(x: Array) -> Array:
    """Return the usual approximation by a hyperbolic tangent, in fp32: errors of up to 4.7e-4."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


def gelu_logistic(x: Array) -> Array:
    """Return the same as `gelu_tanh` by one exponential and one division."""
    y = x.astype(jnp.float32)
    return (y * lax.logistic(y * (1.5957691216 + 0.0713548162726 * y * y))).astype(x.dtype)


GELUS: dict[str, Activation] = {
    "fp32 erf (default)": lambda x: jax.nn.gelu(x, approximate=False),
    "an exponential": gelu_exp,
    "tanh": gelu_tanh,
    "a logistic": gelu_logistic,
}


def gelu_errors() -> dict[str, tuple[float, float, float]]:
    """Return how far GELUs in bf16 are from the exact one in fp64, over all numbers of bf16 from -10 to 10.

    Returns:
        By name: the largest error; the share of results that are not the exact one, rounded; and the largest distance
        from that in steps of bf16, of results above 1e-3.
    """
    numbers = np.arange(2**16, dtype=np.uint16).view(jnp.bfloat16)
    numbers = numbers[np.abs(numbers.astype(np.float32)) <= 10]
    x = numbers.astype(np.float64)
    exact = x * scipy.special.ndtr(x)
    rounded, large, errors = exact.astype(jnp.bfloat16), np.abs(exact) > 1e-3, {}
    for name, gelu in GELUS.items():
        y = np.asarray(jax.jit(gelu)(jnp.asarray(numbers)))
        steps = np.abs(y.view(np.int16).astype(int) - rounded.view(np.int16).astype(int))
        largest = float(np.abs(y.astype(np.float64) - exact).max())
        errors[name] = largest, float((y != rounded).mean()), float(steps[large].max())
    return errors


if __name__ == "__main__":
    print("| GELU in bf16 | largest error | not the exact result, rounded | steps of bf16 off, at most |")
    print("|---|---|---|---|")
    for name, (largest, share, steps) in gelu_errors().items():
        print(f"| {name} | {largest:.1e} | {100 * share:.2f} % | {steps:.0f} |")
