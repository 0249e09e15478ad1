"""GPUs to plan for, which may be absent: their description for XLA's CUDA compiler, and their speed."""

import dataclasses
import os
from importlib.util import find_spec

import jax
from jax.experimental import topologies

from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel

_TARGET = """\
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock} l2_cache_size: {cache}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{name}"
"""
"""GpuTargetConfigProto, as XLA's own files have it (xla/backends/gpu/target_config/specs)."""


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

    @property
    def target(self) -> str:
        """Its description for XLA, a GpuTargetConfigProto as text."""
        fields = {**dataclasses.asdict(self), "bandwidth": int(self.bandwidth), "optin": self.shared - 1024}
        return _TARGET.format(**fields)


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


def prepare_cuda_compiler() -> None:
    """Let the CUDA compiler load on a machine without a driver. Call it before JAX looks for devices."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    jax.config.update("jax_platforms", "cpu")


def missing_compiler() -> str | None:
    """Return what to install if the CUDA compiler is missing, otherwise None."""
    version = jax.__version__
    # Without any plug-in there is no package `jax_plugins`, and looking for a module inside it would raise.
    if find_spec("jax_plugins") and any(find_spec(f"jax_plugins.xla_{cuda}") for cuda in ("cuda13", "cuda12")):
        return None
    return (
        f"the CUDA compiler is not installed: pip install 'jax[cuda12]=={version}' (it needs no GPU); or, smaller, "
        f"pip install --no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version} nvidia-cuda-nvcc-cu12 "
        f"nvidia-cuda-runtime-cu12 nvidia-cudnn-cu12. Choose a virtual environment of its own: without a GPU, JAX then "
        "prints errors at every start, such as `Unable to load cuFFT`, unless JAX_PLATFORMS=cpu is set"
    )


def on_absent_gpus(layout: Parallel, card: Card, nodes: int = 1) -> Parallel:
    """Return `layout`, which is emulated, on GPUs that may be absent, spread evenly over `nodes` machines.

    Raises:
        DistrijaxError: the CUDA compiler is missing, or the devices do not divide evenly.
    """
    if (problem := missing_compiler()) is not None:
        raise DistrijaxError(problem)
    if layout.size % nodes:
        raise DistrijaxError(f"{layout.size} devices do not divide evenly over {nodes} nodes; choose a divisor")
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=card.target, topology=f"{nodes}x1x{layout.size // nodes}"
    )
    return dataclasses.replace(layout, emulate=False, devices=tuple(topology.devices))
