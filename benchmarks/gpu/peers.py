"""A step of the U-Net in diffusers on torch, in turn with ours: same weights and inputs, one dispatch a step."""

import against
import peer_diffusers

from distrijax import Parallel
from distrijax.tools.bench import weights
from distrijax.tools.bench.timing import take_turns
from gpu.results import Json
from gpu.setup import Setup


def diffusers(setup: Setup, size: int, *modes: str) -> Json:
    """Time it in eager mode, and compiled by torch in each of these modes."""
    case = setup.workload(size, steps=1)
    peer_diffusers.check(case)
    arrays = weights.arrays(case.model, "unet", case.dtype, Parallel().replicated)
    functions, distances = against.compare(case, arrays, ["diffusers"], torch_modes=() if setup.tiny else modes)
    lines = take_turns(functions, setup.runs(size))
    return distances | {
        line.name: {
            "step_ms": [round(1000 * seconds, 3) for seconds in line.seconds],
            "compile_seconds": round(line.compile_seconds or 0, 1),
        }
        for line in lines
    }
