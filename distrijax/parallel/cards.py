"""GPUs: what their makers state, and what programs are assumed to reach of it.

`plan` estimates compiled programs with these rates, and `auto` chooses a mode by them.
"""

import dataclasses

from distrijax.errors import DistrijaxError


@dataclasses.dataclass(frozen=True)
class Card:
    """A GPU: peak rates as its maker states them (`Rates.of` has those that programs reach).

    Attributes:
        flops: FLOP/s of dense bf16 matrix products that accumulate in fp32.
        bandwidth: bytes/s of its memory.
        link, network: bytes/s that it receives from GPUs of its node and from other nodes.
        memory: bytes.
        cores, fpus, clock, cache, threads, shared, major, minor: the rest of what XLA's compiler needs to know.
    """

    name: str
    flops: float
    bandwidth: float
    link: float
    network: float
    memory: int
    cores: int
    fpus: int
    clock: float
    cache: int
    threads: int
    shared: int
    major: int
    minor: int


# From NVIDIA's datasheets (A100, H100, H200, L40S, DGX B200) and Ada whitepaper; caches and memory sizes from XLA's
# files. NVLink is one way; the networks are those of DGX machines, a port for each GPU.
CARDS = {
    "a100": Card(
        "NVIDIA A100-SXM4-80GB", 312e12, 2.039e12, 300e9, 25e9, memory=85100068864,
        cores=108, fpus=64, clock=1.41, cache=41943040, threads=2048, shared=167936, major=8, minor=0,
    ),
    "h100": Card(
        "NVIDIA H100 80GB HBM3", 989e12, 3.352e12, 450e9, 50e9, memory=84929347584,
        cores=132, fpus=128, clock=1.98, cache=52428800, threads=2048, shared=233472, major=9, minor=0,
    ),
    "h200": Card(
        "NVIDIA H200 141GB HBM3e", 989e12, 4.8e12, 450e9, 50e9, memory=151397597184,
        cores=132, fpus=128, clock=1.98, cache=52428800, threads=2048, shared=233472, major=9, minor=0,
    ),
    # PCIe 4.0 x16 and no NVLink. The network is a guess: 100 Gb/s for each GPU.
    "l40s": Card(
        "NVIDIA L40S", 362e12, 864e9, 32e9, 12.5e9, memory=47810936832,
        cores=142, fpus=128, clock=2.52, cache=100663296, threads=1536, shared=102400, major=8, minor=9,
    ),
    # These GPUs cannot read each other's memory, so transfers pass through the host, at half of PCIe 4.0 x16.
    # The network is a guess: 25 Gb/s for each GPU.
    "rtx4090": Card(
        "NVIDIA GeForce RTX 4090", 165e12, 1.008e12, 16e9, 3.1e9, memory=25393692672,
        cores=128, fpus=128, clock=2.52, cache=75497472, threads=1536, shared=102400, major=8, minor=9,
    ),
    "b200": Card(
        "NVIDIA B200", 2250e12, 7.672e12, 900e9, 50e9, memory=191514411008,
        cores=148, fpus=128, clock=1.965, cache=132644864, threads=2048, shared=233472, major=10, minor=0,
    ),
}  # fmt: skip

DEVICE_KINDS = {
    "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA A100-SXM4-40GB": "a100", "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200", "NVIDIA L40S": "l40s", "NVIDIA GeForce RTX 4090": "rtx4090", "NVIDIA B200": "b200",
}  # fmt: skip
"""The cards by JAX's `device_kind`. The memory of an A100 of 40 GB is slower, so it waits for a smaller part of a step
than is assumed here. The H200's name is what a device said; the others are what the driver is known to call them."""

RATES = {
    "flops": ("large matrix products", 1e12, "TFLOP/s"),
    "memory": ("the card's memory", 1e9, "GB/s"),
    "kernel": ("for a kernel to start", 1e-6, "µs"),
    "graph": ("more outside of CUDA graphs", 1e-6, "µs"),
    "enqueue": ("of the host, to enqueue a kernel", 1e-6, "µs"),
    "dispatch": ("of the host, for each run of steps", 1e-3, "ms"),
    "link": ("from GPUs of the node, one transfer at a time", 1e9, "GB/s"),
    "network": ("from other nodes", 1e9, "GB/s"),
    "latency": ("of a transfer within a node", 1e-6, "µs"),
    "network_latency": ("of a transfer between nodes", 1e-6, "µs"),
    "slowed": ("of a transfer's time is lost to kernels", 1e-2, "%"),
}
"""What can be replaced: its meaning, and the unit in which reports state it."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """What the estimate of a program's time assumes, in FLOP/s, bytes/s and seconds (see `RATES`).

    What has a value here was measured or fitted: on an H200, whose host was the slower in two steps of eight, and to
    what DistriFusion measured on eight A100s: its synchronous steps at 1024x1024, and at 3840x3840 the 32 ms that a
    displaced step loses to transfers, which take 49.
    """

    cores: int
    lanes: int  # of each core, for fp32
    clock: float
    flops: float
    memory: float
    link: float
    network: float
    kernel: float
    graph: float = 3e-6
    enqueue: float = 8.2e-6
    dispatch: float = 1e-3
    latency: float = 30e-6
    network_latency: float = 50e-6  # a guess
    slowed: float = 0.6

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise DistrijaxError(f"{name} is {value!r}; it must be a number above zero")

    @classmethod
    def of(cls, card: Card, dtype: str = "bfloat16", **replaced: float) -> "Rates":
        """Return what is assumed for a card, but for what is `replaced`.

        On an H200, products reach 85 % of the peak, memory 90 %, and a kernel starts in 1 µs. GPUs before Hopper do not
        prepare a kernel while another runs: 3 µs fit DistriFusion's step on eight A100s without transfers.
        """
        assumed = {
            # JAX lets GPUs round the inputs of float32 products to TF32, at half the rate.
            "flops": 0.85 * card.flops / (2 if dtype == "float32" else 1),
            "memory": 0.9 * card.bandwidth,
            "link": 0.71 * card.link,  # a guess, as the next
            "network": 0.71 * card.network,
            "kernel": 1e-6 if card.major >= 9 else 3e-6,
        }
        return cls(card.cores, card.fpus, 1e9 * card.clock, **assumed | replaced)
