"""Ways to compile a step that may be faster on a card, each of which becomes the default only if a card says so.

In a step of one of eight devices at 1024x1024, an H200 runs 2,060 kernels of 5 µs each: most variants aim at fewer of
them, or at less time between them.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
from jax import Array

from distrijax.nn.transformer import FeedForward
from distrijax.runtime.xla_options import Options
from gpu.geglu import geglu
from gpu.gelus import Activation, gelu_exp, gelu_logistic, gelu_tanh

GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to compile a step.

    Attributes:
        options: of XLA, besides ours.
        feed_forward: in place of `FeedForward`'s call.
        tunes: XLA's autotuner chooses among other kernels. What it chose before is kept, by process and on disk, so
            that such a variant needs a process of its own without that cache.
    """

    options: Options = dataclasses.field(default_factory=dict)
    feed_forward: Callable[[FeedForward, Array], Array] | None = None
    tunes: bool = False

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Trace with this variant."""
        forward = self.feed_forward
        if forward is None:
            yield
            return
        jax.clear_caches()  # otherwise JAX would take the traced program of another variant
        with mock.patch.object(FeedForward, "__call__", lambda layer, x: forward(layer, x)):
            yield
        jax.clear_caches()


def gated(layer: FeedForward, x: Array, *, gelu: Activation) -> Array:  # [..., C]
    """Apply a feed-forward with this GELU."""
    with jax.named_scope(layer.path):
        hidden, gate = jnp.split(layer.proj_in(x), 2, -1)
        return layer.proj_out(hidden * gelu(gate))


def gated_at_once(layer: FeedForward, x: Array) -> Array:  # [..., C]
    """Apply a feed-forward whose first product gates its own result."""
    kernel, bias = layer.proj_in.kernel, layer.proj_in.bias
    assert bias is not None
    with jax.named_scope(layer.path):
        product = geglu(x.reshape(-1, x.shape[-1]), kernel[...], bias[...])
        return layer.proj_out(product.reshape(*x.shape[:-1], -1))


VARIANTS = {  # most promising first
    "convolutions in CUDA graphs": Variant({"xla_gpu_enable_command_buffer": f"{GRAPHS},CONVOLUTION"}),
    "programmatic dependent launch": Variant({"xla_gpu_enable_pdl": True, "xla_gpu_enable_pdl_launch": True}),
    "no Triton products": Variant({"xla_gpu_enable_triton_gemm": False}),
    "GELU by an exponential": Variant(feed_forward=partial(gated, gelu=gelu_exp)),
    "queries, keys and values apart": Variant({"xla_gpu_dot_merger_threshold_mb": 0}),
    "GEGLU in one kernel": Variant(feed_forward=gated_at_once),
    "the loop in a CUDA graph": Variant(
        {
            "xla_gpu_enable_command_buffer": f"{GRAPHS},CONVOLUTION,WHILE",
            "xla_gpu_command_buffer_unroll_loops": True,
        }
    ),
    "no split-K": Variant({"xla_gpu_experimental_force_split_k": 1}, tunes=True),
    "concurrent CUDA graphs": Variant({"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}),
    "GELU by a logistic": Variant(feed_forward=partial(gated, gelu=gelu_logistic)),
    "GELU by tanh": Variant(feed_forward=partial(gated, gelu=gelu_tanh)),
    "products by cuDNN": Variant({"xla_gpu_cudnn_gemm_fusion_level": 3}, tunes=True),
    "convolution fusions": Variant({"xla_gpu_experimental_enable_conv_fusion": True}, tunes=True),
    "fusion autotuner": Variant({"xla_gpu_experimental_enable_fusion_autotuner": True}, tunes=True),
    "Triton fusions with several results": Variant({"xla_gpu_unsupported_enable_triton_multi_output_fusion": True}),
    "layer norms by cuDNN": Variant({"xla_gpu_enable_cudnn_layer_norm": True}),
    "64 traces of a CUDA graph": Variant({"xla_cmd_buffer_trace_cache_size": 64}),
    "all tilings of Triton products": Variant({"xla_gpu_exhaustive_tiling_search": True}, tunes=True),
}
