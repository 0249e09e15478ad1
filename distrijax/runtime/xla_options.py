"""XLA options for the denoising loop. With XLA's defaults, hardly any transfer overlaps with computation.

Options are passed with each program (`compiler_options`): no environment variable is set, and other JAX code in the
process is not affected.
"""

Options = dict[str, bool | int | str | bytes]

MESSAGES = 24
"""Roughly the number of messages that carry a step's keys and values. SDXL has 140 all-gathers, each of which costs 10
to 20 µs to launch, so XLA combines them. With fewer, larger messages the first layer would wait for keys and values
that it does not need yet."""

HEAD_START = 11, 20
"""Minimum and maximum of heavy operations (matmuls, convolutions) between the start of a transfer and its use.

A message of 1/24 of the keys and values takes as long as 7 heavy operations of SDXL at 1024x1024 on H100s with NVLink,
and as long as 12 at 3840x3840, where a step waits 1.2 % with 12 and not at all with 20. A smaller model has too few
heavy operations for 20: messages queue up, and a U-Net with a quarter of SDXL's transformer blocks waits 5 %, against
0.3 % with 11 and 0.7 % with 8."""

_HEAVY_PER_BLOCK = 8  # heavy operations of one transformer block after XLA has fused it

SYNCHRONOUS: Options = {
    # Off by default: collectives would block in program order, for 4.1 of the 14.6 ms of a step.
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # The default estimator charges no more for a gather than for the kernel before its use, so it starts the gather no
    # sooner: in a step of 12 ms (SDXL at 1024x1024 on eight H100s), 1.9 ms are waiting.
    "xla_gpu_enable_analytical_sol_latency_estimator": False,
    # By default XLA merges the matmuls for q, k and v up to 32 MB, then copies the results out: a step of SDXL at
    # 1024x1024 on one H100 takes 33.7 ms, not 32.6. With few tokens the merged matmul is faster: on eight, 9.4 ms
    # against 10.2.
    "xla_gpu_dot_merger_threshold_mb": 8,
}

DISPLACED: Options = SYNCHRONOUS | {
    # Halos and moments are packed by hand. XLA would combine messages that are needed early with messages that are sent
    # late, and make the early ones wait.
    "xla_gpu_collective_permute_combine_threshold_bytes": 0,
    "xla_gpu_all_reduce_combine_threshold_bytes": 0,
    # This pass moves every permute to the start of the loop's body, where the few latent rows that the first layer
    # waits for would queue behind the halos of all other layers.
    "xla_disable_hlo_passes": "collective-permute-motion",
}


def denoising(platform: str, *, waits_only: bool, gathered_bytes: int, attentions: int) -> Options:
    """Return the compiler options of one program of the denoising loop.

    Args:
        platform: `device.platform`; only "gpu" has options.
        waits_only: whether every transfer of the program is used in the step that sends it, as in a synchronous phase.
        gathered_bytes: bytes of keys and values that one device gathers in a step.
        attentions: number of self-attention layers.
    """
    if platform != "gpu":
        return {}
    if waits_only:
        return dict(SYNCHRONOUS)
    return DISPLACED | {
        "xla_gpu_all_gather_combine_threshold_bytes": gathered_bytes // MESSAGES,
        "fdo_profile": head_start(attentions),
        # Limit 1 serialises the two halo permutes: the second starts at the first one's use, exposing 7 of 14 MB.
        "xla_gpu_experimental_parallel_collective_overlap_limit": 2,
        # XLA would print the 1,780 kernels that are missing from the profile.
        "xla_gpu_pgle_accuracy_checker": "PGLE_STRICTNESS_LEVEL_OFF",
    }


def head_start(attentions: int) -> bytes:
    """Return an XLA profile that sets the cost of transfers only, under XLA's own names for them.

    Without a profile, XLA charges 1000 units for a matmul or a convolution, and 5000 for a transfer of any size.

    Args:
        attentions: number of self-attention layers.
    """
    least, most = HEAD_START
    between_messages = _HEAVY_PER_BLOCK * attentions // MESSAGES
    cost = 1000 * min(most, max(least, between_messages))
    numbers = ["", *(f".{i}" for i in range(1, 200))]
    kinds = ("all-gather-start", "all-reduce-start", "collective-permute-start")
    return "\n".join(f'costs {{ name: "{kind}{n}" cost_us: {cost} }}' for kind in kinds for n in numbers).encode()
