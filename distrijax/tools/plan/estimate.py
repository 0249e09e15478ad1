"""What a layout costs on GPUs that may be absent.

Kernels, transfers, schedule and memory are those of the compiled denoising programs. All times are estimated from them
and the card's rates. Text encoding and decoding are not included.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from distrijax.checks import whole_number
from distrijax.parallel.auto.choose import Machine
from distrijax.parallel.cards import Card, Rates
from distrijax.parallel.options import Parallel
from distrijax.parallel.specs import AXES
from distrijax.runtime.xla_options import Options
from distrijax.sampling.inputs import abstract_inputs
from distrijax.tools import loop
from distrijax.tools.plan.gpus import on_absent_gpus
from distrijax.tools.plan.reading import read
from distrijax.tools.plan.schedule import Step, Timeline, walk
from distrijax.tools.traffic import Traffic, count_traffic
from distrijax.tools.workload import Workload

DISPATCHES = 8  # of a picture, about


@dataclasses.dataclass(frozen=True)
class Request:
    """What to plan for: pictures, a card, and the number of machines that hold the devices."""

    workload: Workload
    card: Card
    rates: Rates
    nodes: int = 1

    def __post_init__(self) -> None:
        whole_number("nodes", self.nodes, 1)

    def machine(self, parallel: Parallel) -> Machine:
        """Return the cards that share a picture, whose devices are numbered node by node."""
        across = parallel.size // self.nodes % parallel.patch != 0
        return Machine(self.card.name, self.rates, across)


@dataclasses.dataclass(frozen=True)
class PlannedPhase:
    """The compiled program of one phase, which has so many steps of a picture.

    Attributes:
        program: what a step runs, and `step` when.
        temporaries: bytes of temporary memory on each device.
        held: bytes of inputs other than weights, and of outputs that do not reuse an input's memory.
        compile_seconds: tracing included.
    """

    name: str
    steps: int
    program: Step
    step: Timeline
    temporaries: int
    held: int
    compile_seconds: float

    def json(self) -> dict[str, object]:
        step = self.step
        return {
            "name": self.name,
            "compile_seconds": self.compile_seconds,
            "flops": step.flops,
            "collectives": len(step.collectives),
            "exposed": len(step.exposed),
            "received_bytes": step.received,
            "exposed_bytes": sum(c.received for c in step.exposed),
            "temporary_bytes": self.temporaries,
            "launches": step.launches,
            "estimated_step_seconds": step.seconds,
            "estimated_host_seconds": step.host,
            "estimated_wait_seconds": step.waiting,
            "estimated_seconds": {category: seconds for category, (_, seconds) in step.by_category().items()},
        }


@dataclasses.dataclass(frozen=True)
class Plan:
    """A layout with the cost of its compiled programs.

    Attributes:
        why: what mode `auto` chose and for which reason.
    """

    request: Request
    parallel: Parallel
    traffic: Traffic
    phases: list[PlannedPhase]
    why: str | None = None

    @property
    def name(self) -> str:
        return layout_name(self.parallel)

    @property
    def memory(self) -> int:
        """Bytes that a device holds while it denoises."""
        return sum(self.memory_parts.values())

    @property
    def memory_parts(self) -> dict[str, int]:
        """The same by what it is for. Text encoders and autoencoder stay on the device too."""
        model, itemsize = self.request.workload.model, jnp.dtype(self.request.workload.dtype).itemsize
        unet = model.components["unet"].parameters
        largest = max(self.phases, key=lambda phase: phase.held + phase.temporaries)
        return {
            "weights of the U-Net": unet * itemsize,
            "weights of the other components": (model.parameters - unet) * itemsize,
            "carried from step to step": self.traffic.carry_bytes,
            f"temporaries ({largest.name} steps)": largest.temporaries,
            "keys and values of the text, and others": largest.held - self.traffic.carry_bytes,
        }

    @property
    def fits(self) -> bool:
        return self.memory <= 0.95 * self.request.card.memory  # the driver and XLA keep some

    @property
    def picture_seconds(self) -> float:
        """Seconds of denoising, all steps of all pictures of the batch."""
        dispatches = min(DISPATCHES, self.request.workload.steps)
        return dispatches * self.request.rates.dispatch + sum(phase.steps * phase.step.seconds for phase in self.phases)

    @property
    def pictures_per_hour(self) -> float:
        """Pictures of all devices together, if they did nothing but denoise."""
        return 3600 * self.request.workload.pictures / self.picture_seconds

    def json(self) -> dict[str, object]:
        """Return the totals, for other programs."""
        return {
            **self.request.workload.json(),
            **{name: getattr(self.parallel, name) for name in (*AXES, "mode", "warmup_steps")},
            "mode_chosen": self.why,
            "gpu": self.request.card.name,
            "nodes": self.request.nodes,
            "assumed": dataclasses.asdict(self.request.rates),
            "memory_bytes": self.memory,
            "carry_bytes": self.traffic.carry_bytes,
            "estimated_denoising_seconds": self.picture_seconds,
            "estimated_pictures_per_hour": self.pictures_per_hour,
            "phases": [phase.json() for phase in self.phases],
        }


def layout_name(layout: Parallel) -> str:
    """Return the axes that have more than one device, for reports."""
    sizes = {axis: getattr(layout, axis) for axis in AXES}
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one device"


def plan(request: Request, layout: Parallel, *, options: Options | None = None) -> Plan:
    """Compile a layout, an emulated mesh, and estimate its cost.

    Args:
        options: XLA's compiler options besides ours.
    """
    workload = request.workload
    workload.layout(layout)
    choice = workload.choose(layout, request.machine(layout))
    layout = choice.parallel
    parallel = on_absent_gpus(layout, request.card, request.nodes)
    config, dtype, (height, width) = workload.model.unet, jnp.dtype(workload.dtype), workload.latents
    guided, pictures = workload.branches == 2, workload.pictures
    inputs, slabs = abstract_inputs(
        config, parallel=parallel, scheduler=loop.SCHEDULER, height=height, width=width, dtype=dtype, guided=guided,
        pictures=pictures,
    )  # fmt: skip
    call, planned = loop.LoopCall(inputs, parallel, slabs), list[PlannedPhase]()
    for steps, phase in layout.phases(workload.steps):
        # Without the devices no kernel can be tried out.
        program = loop.compile_phase(call, phase, {"xla_gpu_autotune_level": 0, **(options or {})})
        memory, text = program.executable.memory_analysis(), program.executable.as_text()
        assert text is not None
        assert memory is not None
        step = read(text)
        input_bytes = sum(map(_bytes_of_device, jax.tree.leaves(call.inputs[1:])))
        planned.append(
            PlannedPhase(
                phase.name,
                steps,
                step,
                walk(step, request.rates, parallel.size // request.nodes),
                temporaries=memory.temp_size_in_bytes,
                held=input_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
                compile_seconds=program.compile_seconds,
            )
        )
        call = program.after
    counted = count_traffic(config, layout, dtype, height=height, width=width, guided=guided, pictures=pictures)
    return Plan(request, parallel, counted, planned, choice.why)


def _bytes_of_device(x: jax.ShapeDtypeStruct | np.ndarray) -> int:
    """Return the size of one device's part of an input."""
    sharding = getattr(x, "sharding", None)
    shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
    return int(np.prod(shape)) * x.dtype.itemsize
