"""What XLA is told besides the program. Its defaults hide next to none of the transfers.

The options go with each program (`compiler_options`): no environment variable is set, and other JAX code is untouched.
"""

from typing import Any

import jax

from distrijax.parallel.pieces import Carried

Options = dict[str, Any]

GATHERS = 24
"""Messages that the keys and values of a step go in, about. SDXL has 140 gathers, and a launch of each costs 10 to
20 µs; of messages larger than these, the first layer would wait for parts that it does not need."""

HEAD_START = 11, 20
"""Products and convolutions that XLA puts between the start of a transfer and its use: least and most. A message of
1/24 of the keys and values takes as long as 7 of them in SDXL at 1024x1024 on H100s with NVLink, and as 12 at
3840x3840, where a step waits 1.2 % with 12 and nothing with 20. A smaller model has too few for 20: messages then
queue, and a U-Net with a quarter of SDXL's transformers waits 5 %, against 0.3 % with 11 and 0.7 % with 8."""

_HEAVY = 8  # products and attentions of a transformer block, as XLA compiles it

SYNCHRONOUS: Options = {
    # Off by default: collectives would then block in program order, 4.1 of 14.6 ms a step.
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # The default estimate holds a gather for as cheap as the kernel before its use, and starts it no sooner: of a step
    # of 12 ms of SDXL at 1024x1024 on eight H100s, 1.9 ms are waiting.
    "xla_gpu_enable_analytical_sol_latency_estimator": False,
    # By default the products for q, k and v are one, up to 32 MB, and their results copied apart: a step of SDXL at
    # 1024x1024 on one H100 takes 33.7 ms for 32.6. With few tokens one product is faster: on eight, 9.4 ms for 10.2.
    "xla_gpu_dot_merger_threshold_mb": 8,
}

DISPLACED: Options = SYNCHRONOUS | {
    # Halos and moments are packed by hand. XLA would join what is sent early with what is sent late, and wait for both.
    "xla_gpu_collective_permute_combine_threshold_bytes": 0,
    "xla_gpu_all_reduce_combine_threshold_bytes": 0,
    # It moves all permutes to the head of the loop's body: the few rows that the first layer waits for would queue
    # behind the halos of all others.
    "xla_disable_hlo_passes": "collective-permute-motion",
}


def denoising(platform: str, carried: Carried | None, groups: int, profile: bytes | None = None) -> Options:
    """For a program of the denoising loop.

    Args:
        carried: what a displaced step takes from the one before, those of all devices; None for synchronous steps.
        groups: of devices that share a picture's rows.
        profile: measured costs (`fdo_profile`, in `profiles.UNIT`s), in place of `head_start`.
    """
    if platform != "gpu":
        return {}
    if carried is None:
        return SYNCHRONOUS | ({"fdo_profile": profile} if profile else {})
    gathered = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(carried.tokens)) // groups
    size = {"xla_gpu_all_gather_combine_threshold_bytes": gathered // GATHERS}
    hints = {
        "fdo_profile": head_start(len(carried.tokens)),
        # With one at a time the second of two neighbours' halos would start only where the first is used: 7 of 14 MB
        # exposed. With measured costs one is right: a layer's keys and values, which it needs at once, share the link.
        "xla_gpu_experimental_parallel_collective_overlap_limit": 2,
        # XLA would list the 1,780 kernels whose cost it is not told.
        "xla_gpu_pgle_accuracy_checker": "PGLE_STRICTNESS_LEVEL_OFF",
    }
    return DISPLACED | size | ({"fdo_profile": profile} if profile else hints)


def head_start(attentions: int) -> bytes:
    """A profile in which transfers alone have a cost, under the names that XLA gives them.

    Without one, XLA counts 1000 for a product or convolution and 5000 for any transfer, whatever its size.

    Args:
        attentions: self-attentions of the model.
    """
    least, most = HEAD_START
    cost = 1000 * min(most, max(least, _HEAVY * attentions // GATHERS))  # from each message to the next
    numbers = ["", *(f".{i}" for i in range(1, 200))]
    kinds = ("all-gather-start", "all-reduce-start", "collective-permute-start")
    return "\n".join(f'costs {{ name: "{kind}{n}" cost_us: {cost} }}' for kind in kinds for n in numbers).encode()
