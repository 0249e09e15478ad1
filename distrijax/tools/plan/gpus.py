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
"""GpuTargetConfigProto. Cores, caches and memory sizes are those of XLA's own files (openxla/xla,
xla/backends/gpu/target_config/specs) where they list the card; for the two Ada cards, of NVIDIA's Ada whitepaper."""


@dataclasses.dataclass(frozen=True)
class Card:
    """A GPU: peak rates as its maker states them (`Rates.of` turns them into rates that programs reach).

    Attributes:
        flops: FLOP/s of dense bf16 matrix products that accumulate in fp32.
        bandwidth: bytes/s of its memory.
        link: bytes/s that it receives from GPUs of its node, over `link_name`.
        network: bytes/s that it receives from other nodes.
        memory: bytes.
        cores, fpus, clock, cache, threads, shared, major, minor: the rest of what XLA's compiler needs to know.
    """

    name: str
    flops: float
    bandwidth: float
    link: float
    network: float
    link_name: str
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

    def peak(self, dtype: str) -> float:
        """Return FLOP/s for `dtype`: half for float32, whose inputs JAX lets GPUs round to TF32 by default."""
        return self.flops / (2 if dtype == "float32" else 1)


CARDS = {
    # NVIDIA A100 datasheet: 312 TFLOP/s, 2,039 GB/s, NVLink 600 GB/s both ways. DGX A100: a 200 Gb/s port for each GPU.
    "a100": Card(
        "NVIDIA A100-SXM4-80GB", 312e12, 2.039e12, 300e9, 25e9, "NVLink 3", memory=85100068864,
        cores=108, fpus=64, clock=1.41, cache=41943040, threads=2048, shared=167936, major=8, minor=0,
    ),
    # NVIDIA H100 datasheet: 989 TFLOP/s dense, 3.35 TB/s, NVLink 900 GB/s both ways. DGX H100: 400 Gb/s for each GPU.
    "h100": Card(
        "NVIDIA H100 80GB HBM3", 989e12, 3.352e12, 450e9, 50e9, "NVLink 4", memory=84929347584,
        cores=132, fpus=128, clock=1.98, cache=52428800, threads=2048, shared=233472, major=9, minor=0,
    ),
    # NVIDIA H200 datasheet: 989 TFLOP/s dense, 4.8 TB/s, NVLink 900 GB/s both ways.
    "h200": Card(
        "NVIDIA H200 141GB HBM3e", 989e12, 4.8e12, 450e9, 50e9, "NVLink 4", memory=151397597184,
        cores=132, fpus=128, clock=1.98, cache=52428800, threads=2048, shared=233472, major=9, minor=0,
    ),
    # NVIDIA L40S datasheet: 362 TFLOP/s dense, 864 GB/s, PCIe 4.0 x16 with 64 GB/s both ways and no NVLink. The
    # network is a guess: 100 Gb/s for each GPU.
    "l40s": Card(
        "NVIDIA L40S", 362e12, 864e9, 32e9, 12.5e9, "PCIe 4", memory=47810936832,
        cores=142, fpus=128, clock=2.52, cache=100663296, threads=1536, shared=102400, major=8, minor=9,
    ),
    # NVIDIA Ada whitepaper: 165 TFLOP/s dense with sums in fp32, 1,008 GB/s, PCIe 4.0 x16. GPUs cannot read each
    # other's memory, so transfers pass through the host's: half the rate. The network is a guess: 25 Gb/s for each GPU.
    "rtx4090": Card(
        "NVIDIA GeForce RTX 4090", 165e12, 1.008e12, 16e9, 3.1e9, "PCIe 4, through the host", memory=25393692672,
        cores=128, fpus=128, clock=2.52, cache=75497472, threads=1536, shared=102400, major=8, minor=9,
    ),
    # NVIDIA DGX B200 datasheet: 2,250 TFLOP/s dense and 8 TB/s a GPU (XLA's file: 7.67), NVLink 1.8 TB/s both ways.
    "b200": Card(
        "NVIDIA B200", 2250e12, 7.672e12, 900e9, 50e9, "NVLink 5", memory=191514411008,
        cores=148, fpus=128, clock=1.965, cache=132644864, threads=2048, shared=233472, major=10, minor=0,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rates:
    """What the estimate of a program's time assumes, in FLOP/s, bytes/s and seconds.

    The fractions of the peaks are assumptions, the same for all cards; none was measured.
    """

    flops: float
    memory: float
    link: float
    network: float
    latency: float = 12e-6  # of a collective within a node, its launch included
    network_latency: float = 30e-6  # of a collective between nodes
    kernel: float = 2e-6  # from the end of one kernel to the start of the next

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise DistrijaxError(f"{name} is {value!r}; it must be a number above zero")

    @classmethod
    def of(cls, card: Card, dtype: str = "bfloat16", **replaced: float) -> "Rates":
        """Return 55 % of the card's FLOP/s, 78 % of its memory's and 71 % of its links' rates, but those `replaced`."""
        assumed = {
            "flops": 0.55 * card.peak(dtype),
            "memory": 0.78 * card.bandwidth,
            "link": 0.71 * card.link,
            "network": 0.71 * card.network,
        }
        return cls(**assumed | replaced)


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
