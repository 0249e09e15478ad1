"""What each device sends in a step and holds between steps: counted from the traced program, without weights or GPUs.

The program is traced for an abstract mesh, and its collectives are added up for one device. A halo goes to both
neighbours, in a ring (the first and the last device ignore each other's). In a gather over N devices each receives
N - 1 pieces and sends its own N - 1 times; a sum counts as two gathers of an N-th each. XLA may merge messages.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn
from jax.sharding import AbstractMesh, AxisType
from jax.typing import DTypeLike

from distrijax.config import UNetConfig
from distrijax.errors import DistrijaxError
from distrijax.parallel.auto.choose import choose
from distrijax.parallel.messages import Carried
from distrijax.parallel.options import Parallel
from distrijax.parallel.policies import TENSOR
from distrijax.parallel.specs import AXES
from distrijax.parallel.transport import AXIS
from distrijax.sampling.inputs import abstract_inputs
from distrijax.schedulers import Scheduler
from distrijax.tools import loop

KINDS = {
    "halos": "halos of convolutions",
    "moments": "moments of group norms",
    "tokens": "keys and values",
    "fresh_halos": "fresh latents, first halos",
    "guidance": "guidance branches",
}
_SILENT = {"axis_index", "pvary", "pcast"}  # these primitives name a mesh axis, and send nothing along it
MB = 1e6


@dataclasses.dataclass(frozen=True)
class Volume:
    """What one device sends in a step, which is as much as it receives."""

    messages: int = 0
    elements: int = 0
    bytes: int = 0

    def __add__(self, other: "Volume") -> "Volume":
        return Volume(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one device exchanges and holds, by kind; `str()` of it is a table.

    Attributes:
        steps: by name of the phase: what a step of it exchanges, by kind (see `KINDS`).
        carry: bytes that it holds from one step of the last phase to the next, by kind; "latents" with the scheduler's
            state.
    """

    parallel: Parallel
    steps: Mapping[str, Mapping[str, Volume]]
    carry: Mapping[str, int]

    @property
    def carry_bytes(self) -> int:
        return sum(self.carry.values())

    def step(self, phase: str) -> Volume:
        """Return the sum of all kinds in a step of this phase."""
        return sum(self.steps[phase].values(), start=Volume())

    def __str__(self) -> str:
        p, devices = self.parallel, "device" if self.parallel.size == 1 else "devices"
        lines = [f"{p.size} {devices} (data={p.data} x cfg={p.cfg} x patch={p.patch}), mode {p.mode}; each of them"]
        for phase, kinds in self.steps.items():
            lines.append(f"  {f'in a {phase} step':<28}sends and receives{'messages':>14}")
            volumes = {KINDS[kind]: volume for kind, volume in kinds.items() if volume.messages}
            for label, volume in (volumes | {"total": self.step(phase)}).items():
                lines.append(f"    {label:<26}{volume.bytes / MB:>9.3f} MB{volume.messages:>20}")
        lines.append("  carries from step to step")
        held = {KINDS.get(kind, kind): size for kind, size in self.carry.items() if size}
        held["total"] = self.carry_bytes
        lines += [f"    {label:<26}{size / MB:>9.3f} MB" for label, size in held.items()]
        return "\n".join(lines)


class _AbstractParallel(Parallel):
    """Devices that may be absent: programs can be traced for them but not run."""

    kernel_order = "OHWI"  # of no consequence for what is sent

    def _check_devices(self) -> None:
        pass

    @cached_property
    def mesh(self) -> Any:  # an AbstractMesh, for a Mesh
        return AbstractMesh((self.data, self.cfg, self.patch), AXES, axis_types=(AxisType.Auto,) * 3)


def count_traffic(
    config: UNetConfig,
    parallel: Parallel,
    dtype: DTypeLike = jnp.bfloat16,
    *,
    height: int | None = None,
    width: int | None = None,
    guided: bool = True,
    pictures: int = 1,
    scheduler: Scheduler = loop.SCHEDULER,
) -> Traffic:
    """Count what each device exchanges in a step of this U-Net and carries to the next. Full-size SDXL takes 5 s.

    Args:
        parallel: any mesh; with `emulate=True` its devices may be absent, and are counted as real ones.
        height, width: of the latents; by default what the U-Net was trained on.
    """
    if parallel.mode == TENSOR:
        raise DistrijaxError("mode is 'tensor', in which the compiler decides what is sent; choose another to count it")
    rows, columns = height or config.native_size[0], width or config.native_size[1]
    branches = guided and config.time_cond_proj_dim is None
    parallel = choose(
        parallel, config, height=rows, width=columns, pictures=pictures, guided=branches, dtype=dtype
    ).parallel
    absent = _AbstractParallel(**{name: getattr(parallel, name) for name in (*AXES, "mode", "warmup_steps")})
    inputs, layout = abstract_inputs(
        config, parallel=absent, scheduler=scheduler, height=rows, width=columns, dtype=dtype,
        guided=guided, pictures=pictures,
    )  # fmt: skip
    call = loop.LoopCall(inputs, absent, layout, scheduler)
    sizes = {"data": parallel.data, "cfg": parallel.cfg, AXIS: parallel.patch}
    steps: dict[str, dict[str, Volume]] = {}
    for phase in loop.phases(parallel):
        jaxpr, call = loop.trace(call, phase)
        steps[phase.name] = _count(jaxpr, sizes)
    carry, kinds = call.inputs.carry, ("halos", "moments", "tokens")
    pieces = carry.pieces or Carried()
    held = {kind: _bytes((getattr(pieces, kind), getattr(pieces.past, kind))) // parallel.size for kind in kinds}
    held["halos"] += _bytes(pieces.riders) // parallel.size
    held["latents"] = _bytes((carry.latents, carry.state)) // (parallel.data * parallel.patch)
    return Traffic(parallel, steps, held)


def _bytes(tree: object) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _count(jaxpr: Jaxpr, sizes: dict[str, int]) -> dict[str, Volume]:
    """Add up the collectives over mesh axes of these sizes. The body of a loop counts once: it is one step."""
    volumes = dict.fromkeys(KINDS, Volume())
    for equation in _equations(jaxpr):
        name, named = equation.primitive.name, equation.params.get("axis_name", equation.params.get("axes"))
        axes = named if isinstance(named, tuple) else (named,)
        others = prod(sizes[axis] for axis in axes if axis in sizes) - 1
        if others == 0 or name in _SILENT:
            continue
        arrays = [variable.aval for variable in equation.invars if isinstance(variable.aval, ShapedArray)]
        copies: float = 1
        if name in ("all_gather", "all_gather_invariant"):
            copies = others
        elif name in ("psum", "psum_invariant"):
            copies = 2 * others / (others + 1)
        elif name == "all_to_all":
            copies = others / (others + 1)
        elif name != "ppermute":
            raise NotImplementedError(f"traffic is not counted for {name} over {axes}")
        # Every question of the exchange sends under a scope of its own name (see `parallel/exchange.py`).
        scopes = str(equation.source_info.name_stack).split("/")
        kind = "guidance" if axes == ("cfg",) else next(kind for kind in KINDS if kind in scopes)
        elements, size = round(copies * sum(x.size for x in arrays)), round(copies * _bytes(arrays))
        volumes[kind] += Volume(1, elements, size)
    return volumes


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Yield the equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _equations(inner)
