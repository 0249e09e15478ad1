"""What the card is, and what it reaches at best: the ceilings that steps are compared with."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from distrijax.tools.bench.timing import RunSettings, TimedFunction, machine, take_turns
from gpu.results import Json
from gpu.setup import Setup


def ceilings(setup: Setup) -> Json:
    """Return FLOP/s of a large bf16 product and bytes/s of a copy, read and written, each the median of several."""
    side, size = (64, 2**10) if setup.tiny else (8192, 2**30)
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), jnp.bfloat16)  # zeros would be faster
    x = jnp.zeros(size // 4, jnp.float32)

    def repeated(function: Callable[..., jax.Array], *arrays: jax.Array) -> TimedFunction:
        program = jax.jit(function).lower(*arrays).compile()
        return TimedFunction(lambda: lambda: [program(*arrays) for _ in range(10)], repeats=10)

    functions = {"product": repeated(jnp.matmul, a, b), "copy": repeated(lambda x: x + 1, x)}
    product, copy = (line.median for line in take_turns(functions, RunSettings(5)))
    dispatch = repeated(lambda x: x + 1, jnp.zeros(()))
    start = time.perf_counter()
    jax.block_until_ready(dispatch.prepare()())
    return {
        "machine": machine(),
        "platform": jax.devices()[0].client.platform_version,
        "gpu": jax.default_backend() == "gpu",
        "product_flops": 2 * side**3 / product,
        "copy_bytes": 2 * size / copy,
        "small_program_ms": 100 * (time.perf_counter() - start),
    }
