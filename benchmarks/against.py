"""Time one step of the U-Net here and in other implementations: same weights and inputs, in one process, in turn.

    python benchmarks/against.py --model sdxl-base --peers diffusers --torch-compile
    python benchmarks/against.py --model sdxl-base --height 256 --width 256 --peers diffusers,maxdiffusion --runs 3

distrijax gets what it computes once for each picture, the keys and values of the text; the others compute them in every
step. The relative L2 distance of each prediction from ours is printed besides.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import peer_diffusers
import peer_maxdiffusion
from unet_step import TIMESTEP, PeerSteps, StepInputs, Weights

from distrijax import DistrijaxError, Parallel
from distrijax.checks import DTYPES, one_of
from distrijax.cli.options import add_workload, workload
from distrijax.models.unet import UNet
from distrijax.nn.exchange import WHOLE
from distrijax.nn.module import Weights as UNetWeights
from distrijax.parallel.placement import place_model
from distrijax.tools.bench import weights
from distrijax.tools.bench.timing import BenchReport, RunSettings, TimedFunction, take_turns
from distrijax.tools.workload import Workload

PAUSE = 0.3  # seconds between runs of two frameworks: threads of the previous one spin for 0.2 s (OpenMP) and disturb


class Peer(Protocol):
    """An implementation of the U-Net."""

    def check(self, workload: Workload) -> None:
        """Raise DistrijaxError if it is not installed, or cannot make this U-Net."""
        ...

    def build(self, workload: Workload, weights: Weights, *, torch_modes: Sequence[str]) -> PeerSteps:
        """Return its step with these weights, if it is torch's compiled by it in each of these modes too."""
        ...


PEERS: dict[str, Peer] = {"diffusers": peer_diffusers, "maxdiffusion": peer_maxdiffusion}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_workload(parser, steps=1)
    parser.add_argument("--dtype", choices=DTYPES, help="(default: bfloat16 on a GPU, float32 on a CPU)")
    parser.add_argument("--peers", default="diffusers", metavar="NAME,...", help=f"of {', '.join(PEERS)}")
    modes = "also diffusers compiled by torch, in these of torch.compile's modes (default: default)"
    parser.add_argument("--torch-compile", nargs="?", const="default", default="", metavar="MODE,...", help=modes)
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="timed runs of each (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, with hardware and versions")
    options = parser.parse_args(arguments)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # by default JAX takes three quarters of a GPU
    try:
        peers = [one_of("--peers", name, PEERS) for name in dict.fromkeys(options.peers.split(","))]
        dtype = options.dtype or ("bfloat16" if jax.default_backend() == "gpu" else "float32")
        case = workload(options, dtype=dtype, steps=1)
        report = measure(case, peers, options.runs, torch_modes=list(filter(None, options.torch_compile.split(","))))
    except DistrijaxError as error:
        parser.error(str(error))
    print(report)
    if options.json is not None:
        settings = case.json() | {"peers": peers, "runs": options.runs}
        options.json.write_text(json.dumps(report.json(settings), indent=1) + "\n")


def measure(case: Workload, peers: Sequence[str], runs: int, *, torch_modes: Sequence[str]) -> BenchReport:
    """Time a step of the U-Net in distrijax and in each of these peers."""
    for name in peers:
        PEERS[name].check(case)
    arrays = weights.arrays(case.model, "unet", case.dtype, Parallel().replicated)
    functions, facts = compare(case, arrays, peers, torch_modes=torch_modes)
    settings = RunSettings(runs, report=lambda message: print(f"against: {message}", file=sys.stderr))
    lines = take_turns(functions, settings, pause=PAUSE)
    facts |= {f"{line.name}, time relative to distrijax": line.median / lines[0].median for line in lines[1:]}
    return BenchReport(f"one step of the U-Net, {case}, one device, same weights", lines, facts)


def compare(
    case: Workload, arrays: Weights, peers: Sequence[str], *, torch_modes: Sequence[str]
) -> tuple[dict[str, TimedFunction], dict[str, float]]:
    """Return a step of distrijax and of each peer, and the relative L2 distances of their predictions from ours."""
    ours = _ours(case, arrays)
    functions, distances, prediction = dict(ours.functions), {}, ours.predict()
    for name in peers:
        peer = PEERS[name].build(case, arrays, torch_modes=torch_modes)
        functions |= peer.functions
        distance = np.linalg.norm(prediction - peer.predict()) / np.linalg.norm(prediction)
        distances[f"{name}, relative L2 distance"] = float(distance)
    return functions, distances


def _ours(case: Workload, arrays: Weights) -> PeerSteps:
    unet = case.model.components["unet"].build(arrays, case.dtype)
    assert isinstance(unet, UNet)
    place_model(unet, Parallel())  # on a CPU, kernels have another order
    inputs = StepInputs.of(case)
    text = jax.tree.map(jnp.asarray, (inputs.context, inputs.pooled, inputs.ids, inputs.guidance))
    cond, latents = jax.jit(UNet.condition)(unet, *text), jnp.asarray(inputs.latents)
    flat = UNetWeights.of(unet)  # as the pipeline has it: finding a module's arrays takes longer than a step may
    step = jax.jit(lambda flat, latents, cond: flat.module()(latents, jnp.float32(TIMESTEP), cond, WHOLE))
    start = time.perf_counter()
    program = step.lower(flat, latents, cond).compile()
    seconds = time.perf_counter() - start

    def run() -> jax.Array:
        return program(flat, latents, cond)

    return PeerSteps(
        {"distrijax": TimedFunction(lambda: run, compile_seconds=seconds)}, lambda: np.asarray(run(), np.float64)
    )


if __name__ == "__main__":
    main()
