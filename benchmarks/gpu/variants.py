"""Ways to compile a step that may be faster on a card, each of which becomes the default only if a card says so.

In a step of one of eight devices at 1024x1024, an H200 runs 2,060 kernels of 5 µs each: most variants aim at fewer of
them, or at less time between them.

    python benchmarks/gpu/variants.py    # how far each GELU is from the exact one, over all numbers of bf16
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array, lax

from distrijax.nn import transformer
from distrijax.runtime.xla_options import Options

GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION"
Activation = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to compile a step.

    Attributes:
        options: of XLA, besides ours.
        gelu: in place of the exact one.
        tunes: XLA's autotuner chooses among other kernels. What it chose before is kept, by process and on disk, so
            that such a variant needs a process of its own without that cache.
    """

    options: Options = dataclasses.field(default_factory=dict)
    gelu: Activation | None = None
    tunes: bool = False

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Trace with this variant."""
        gelu = self.gelu
        if gelu is None:
            yield
            return
        jax.clear_caches()  # otherwise JAX would take the traced program of another variant
        with mock.patch.object(transformer.nnx, "gelu", lambda x, approximate: gelu(x)):
            yield
        jax.clear_caches()


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


VARIANTS = {  # most promising first
    "convolutions in CUDA graphs": Variant({"xla_gpu_enable_command_buffer": f"{GRAPHS},CONVOLUTION"}),
    "programmatic dependent launch": Variant({"xla_gpu_enable_pdl": True, "xla_gpu_enable_pdl_launch": True}),
    "no Triton products": Variant({"xla_gpu_enable_triton_gemm": False}),
    "GELU by an exponential": Variant(gelu=gelu_exp),
    "queries, keys and values apart": Variant({"xla_gpu_dot_merger_threshold_mb": 0}),
    "the loop in a CUDA graph": Variant(
        {
            "xla_gpu_enable_command_buffer": f"{GRAPHS},CONVOLUTION,WHILE",
            "xla_gpu_command_buffer_unroll_loops": True,
        }
    ),
    "no split-K": Variant({"xla_gpu_experimental_force_split_k": 1}, tunes=True),
    "concurrent CUDA graphs": Variant({"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}),
    "GELU by a logistic": Variant(gelu=gelu_logistic),
    "GELU by tanh": Variant(gelu=gelu_tanh),
    "products by cuDNN": Variant({"xla_gpu_cudnn_gemm_fusion_level": 3}, tunes=True),
    "convolution fusions": Variant({"xla_gpu_experimental_enable_conv_fusion": True}, tunes=True),
    "fusion autotuner": Variant({"xla_gpu_experimental_enable_fusion_autotuner": True}, tunes=True),
    "Triton fusions with several results": Variant({"xla_gpu_unsupported_enable_triton_multi_output_fusion": True}),
    "layer norms by cuDNN": Variant({"xla_gpu_enable_cudnn_layer_norm": True}),
    "64 traces of a CUDA graph": Variant({"xla_cmd_buffer_trace_cache_size": 64}),
    "all tilings of Triton products": Variant({"xla_gpu_exhaustive_tiling_search": True}, tunes=True),
}


if __name__ == "__main__":
    print("| GELU in bf16 | largest error | not the exact result, rounded | steps of bf16 off, at most |")
    print("|---|---|---|---|")
    for name, (largest, share, steps) in gelu_errors().items():
        print(f"| {name} | {largest:.1e} | {100 * share:.2f} % | {steps:.0f} |")
