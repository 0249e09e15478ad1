"""What a layout costs on GPUs that may be absent.

Kernels, transfers, schedule and memory are those of the compiled denoising programs. All times are estimated from them
and the card's rates. Text encoding, decoding and the host are not included.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from distrijax.checks import whole_number
from distrijax.parallel.options import Parallel
from distrijax.parallel.specs import AXES
from distrijax.runtime.xla_options import Options
from distrijax.tools import loop
from distrijax.tools.plan.cards import Card, Rates
from distrijax.tools.plan.hlo import renamed
from distrijax.tools.plan.schedule import Timeline, largest_copies, read
from distrijax.tools.plan.topology import on_absent_gpus
from distrijax.tools.traffic import Traffic, count_traffic
from distrijax.tools.workload import Workload


@dataclasses.dataclass(frozen=True)
class Request:
    """What to plan for: pictures, a card, and the number of machines (`nodes`) that hold the devices."""

    workload: Workload
    card: Card
    rates: Rates
    nodes: int = 1

    def __post_init__(self) -> None:
        whole_number("nodes", self.nodes, 1)


@dataclasses.dataclass(frozen=True)
class PlannedPhase:
    """The compiled program of one phase.

    Attributes:
        name: "synchronous" or "displaced".
        steps: number of steps of a picture that are in this phase.
        text: the scheduled program.
        step: the timeline of one step.
        copies: count and bytes of the larger "copy" and "transpose" kernels.
        temporaries: bytes of temporary memory on each device.
        held: bytes of inputs other than weights, and of outputs that do not reuse an input's memory.
        compile_seconds: tracing included.
    """

    name: str
    steps: int
    text: str
    step: Timeline
    copies: Mapping[str, tuple[int, int]]
    temporaries: int
    held: int
    trace_seconds: float
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """A layout with the cost of its compiled programs."""

    request: Request
    parallel: Parallel
    traffic: Traffic
    phases: list[PlannedPhase]

    @property
    def name(self) -> str:
        return layout_name(self.parallel)

    @property
    def weights(self) -> int:
        """Bytes of all components: text encoders and autoencoder stay on the device too."""
        workload = self.request.workload
        return workload.model.parameters * jnp.dtype(workload.dtype).itemsize

    @property
    def memory(self) -> int:
        """Bytes that a device holds while it denoises."""
        return self.weights + self.largest.held + self.largest.temporaries

    @property
    def memory_parts(self) -> dict[str, int]:
        """The same by what it is for."""
        workload = self.request.workload
        unet = workload.model.components["unet"].parameters * jnp.dtype(workload.dtype).itemsize
        return {
            "weights of the U-Net": unet,
            "weights of the other components": self.weights - unet,
            "carried from step to step": self.traffic.carry_bytes,
            f"temporaries ({self.largest.name} steps)": self.largest.temporaries,
            "keys and values of the text, and others": self.largest.held - self.traffic.carry_bytes,
        }

    @property
    def largest(self) -> PlannedPhase:
        """The phase that needs most memory."""
        return max(self.phases, key=lambda phase: phase.held + phase.temporaries)

    @property
    def fits(self) -> bool:
        return self.memory <= 0.95 * self.request.card.memory  # the driver and XLA keep some

    @property
    def picture_seconds(self) -> float:
        """Seconds of denoising, all steps of all pictures of the batch."""
        return sum(phase.steps * phase.step.seconds for phase in self.phases)

    @property
    def pictures_per_hour(self) -> float:
        """Pictures of all devices together, if they did nothing but denoise."""
        return 3600 * self.request.workload.pictures / self.picture_seconds

    @property
    def hlo(self) -> str:
        """The scheduled programs in one text, in which no name occurs twice."""
        first, *others = self.phases
        return "\n".join([first.text, *(renamed(phase.text, f".{phase.name}") for phase in others)])

    def json(self) -> dict[str, object]:
        """Return everything, for other programs."""
        workload, card, p = self.request.workload, self.request.card, self.parallel
        settings = {name: getattr(workload, name) for name in ("height", "width", "steps", "dtype", "pictures")}
        return {
            "model": workload.model.name,
            "gpu": card.name,
            "devices": p.size,
            "nodes": self.request.nodes,
            **settings,
            **{name: getattr(p, name) for name in (*AXES, "mode", "warmup_steps")},
            "assumed": dataclasses.asdict(self.request.rates),
            "memory_bytes": {
                "device": self.memory,
                "card": card.memory,
                "weights": self.weights,
                "carry": self.traffic.carry_bytes,
                **{f"temporaries_{phase.name}": phase.temporaries for phase in self.phases},
            },
            "estimated_denoising_seconds": self.picture_seconds,
            "estimated_pictures_per_hour": self.pictures_per_hour,
            "loops": [self._phase_json(phase) for phase in self.phases],
        }

    def _phase_json(self, phase: PlannedPhase) -> dict[str, object]:
        step = phase.step
        return {
            "name": phase.name,
            "trace_seconds": phase.trace_seconds,
            "compile_seconds": phase.compile_seconds,
            "flops": step.flops,
            "collectives": len(step.collectives),
            "exposed": len(step.exposed),
            "received_bytes": step.received,
            "sent_bytes": {kind: volume.bytes_sent for kind, volume in self.traffic.steps[phase.name].items()},
            "exposed_bytes": sum(c.received for c in step.exposed),
            "estimated_step_seconds": step.seconds,
            "estimated_wait_seconds": step.waiting,
            "wait_share": step.wait_share,
            "kernels": {k: {"count": n, "estimated_seconds": s} for k, (n, s) in step.by_category().items()},
            "layers": [
                {"layer": layer, "category": category, "kernels": n, "estimated_seconds": s, "bytes": size}
                for (layer, category), (n, s, size) in step.by_layer().items()
            ],
            "copies_over_1MB": {k: {"count": n, "bytes": b} for k, (n, b) in phase.copies.items()},
            "transfers": [dataclasses.asdict(c) | {"waited": c.waited} for c in step.collectives],
        }


def layout_name(layout: Parallel) -> str:
    """Return the axes that have more than one device, for reports."""
    sizes = {axis: getattr(layout, axis) for axis in AXES}
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one device"


def plan(request: Request, layout: Parallel, *, options: Options | None = None) -> Plan:
    """Compile a layout and estimate its cost.

    Args:
        layout: an emulated mesh, since the devices may be absent.
        options: XLA's compiler options besides ours.

    Raises:
        DistrijaxError: the pictures do not fit the layout, or the CUDA compiler is missing.
    """
    workload = request.workload
    workload.layout(layout)
    parallel = on_absent_gpus(layout, request.card, request.nodes)
    config, dtype, (height, width) = workload.model.unet, jnp.dtype(workload.dtype), workload.latents
    guided, pictures = workload.branches == 2, workload.pictures
    call = loop.abstract_call(
        config, parallel, height=height, width=width, dtype=dtype, guided=guided, pictures=pictures
    )
    planned = []
    for steps, phase in layout.phases(workload.steps):
        # Without the devices no kernel can be tried out.
        program = loop.compile_phase(call, phase, {"xla_gpu_autotune_level": 0, **(options or {})})
        memory, text = program.executable.memory_analysis(), program.executable.as_text()
        assert text is not None
        assert memory is not None
        inputs = sum(map(_bytes_of_device, jax.tree.leaves(call.inputs[1:])))
        planned.append(
            PlannedPhase(
                name=phase.name,
                steps=steps,
                text=text,
                step=read(text, request.rates, parallel.size // request.nodes),
                copies=largest_copies(text),
                temporaries=memory.temp_size_in_bytes,
                held=inputs + memory.output_size_in_bytes - memory.alias_size_in_bytes,
                trace_seconds=program.trace_seconds,
                compile_seconds=program.trace_seconds + program.compile_seconds,
            )
        )
        call = program.after
    counted = count_traffic(config, layout, dtype, height=height, width=width, guided=guided, pictures=pictures)
    return Plan(request, parallel, counted, planned)


def _bytes_of_device(x: jax.ShapeDtypeStruct | np.ndarray) -> int:
    """Return the size of one device's part of an input."""
    sharding = getattr(x, "sharding", None)
    shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
    return int(np.prod(shape)) * x.dtype.itemsize
