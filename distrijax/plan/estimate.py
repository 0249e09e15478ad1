"""What a picture will cost on GPUs that need not be there.

Compiled: the denoising programs, with their kernels, transfers, schedule and memory. Estimated from them and from the
card's rates: all times. Not included: text encoding, decoding, and the host.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from distrijax.checkpoint.component import Checkpoint as Model
from distrijax.errors import DistrijaxError
from distrijax.parallel.mesh import AXES, Parallel
from distrijax.parallel.traffic import Sent, Traffic, traffic
from distrijax.plan import compiling
from distrijax.plan.cards import Card, Rates
from distrijax.plan.hlo import renamed
from distrijax.plan.schedule import Body, largest_copies, read


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be planned for.

    Args:
        height, width: of the picture, in pixels.
        steps: of denoising, the synchronous ones among them.
        nodes: machines that the devices are dealt to.
    """

    model: Model
    card: Card
    rates: Rates
    height: int
    width: int
    steps: int = 50
    dtype: str = "bfloat16"
    guided: bool = True
    pictures: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < 8 or value % 8:
                below = max(8, value // 8 * 8)
                raise DistrijaxError(f"{name} is {value}; it must be a multiple of 8 pixels, such as {below}")
        for name in ("steps", "pictures", "nodes"):
            if getattr(self, name) < 1:
                raise DistrijaxError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class Loop:
    """One program of the denoising loop: a step of it, and the memory of one device."""

    name: str
    text: str
    body: Body
    copies: dict[str, tuple[int, int]]
    temporaries: int
    held: int  # what it takes besides weights, and what it gives and does not put in its place
    trace_seconds: float
    compile_seconds: float  # tracing included


@dataclasses.dataclass(frozen=True)
class Plan:
    """A layout, compiled, with what it costs."""

    request: Request
    parallel: Parallel
    traffic: Traffic | None
    loops: list[Loop]

    @property
    def name(self) -> str:
        p = self.parallel
        return " x ".join(f"{axis} {getattr(p, axis)}" for axis in AXES if getattr(p, axis) > 1) or "one device"

    @property
    def weights(self) -> int:
        """Bytes of all parts: the U-Net's and, since they stay, the text encoders' and the autoencoder's."""
        return self.request.model.parameters * jnp.dtype(self.request.dtype).itemsize

    @property
    def memory(self) -> int:
        """Bytes of a device while it denoises."""
        return self.weights + self.largest.held + self.largest.temporaries

    @property
    def largest(self) -> Loop:
        """The program that needs most."""
        return max(self.loops, key=lambda loop: loop.held + loop.temporaries)

    @property
    def fits(self) -> bool:
        return self.memory <= 0.95 * self.request.card.memory  # the driver and XLA keep some

    @property
    def picture_seconds(self) -> float:
        """Of denoising, from the first step to the last, of all pictures of the batch."""
        synchronous = self.parallel.synchronous_steps(self.request.steps)
        return (
            synchronous * self.loops[0].body.seconds + (self.request.steps - synchronous) * self.loops[-1].body.seconds
        )

    @property
    def pictures_per_hour(self) -> float:
        """As far as denoising alone goes."""
        return 3600 * self.request.pictures / self.picture_seconds

    def sent(self, loop: Loop) -> dict[str, Sent]:
        """By kind, in a step of this loop."""
        if self.traffic is None:
            return {}
        return self.traffic.displaced if loop.name == "displaced" else self.traffic.synchronous

    @property
    def hlo(self) -> str:
        """The scheduled programs one after the other, no name twice."""
        first, *others = self.loops
        return "\n".join([first.text, *(renamed(loop.text, f".{loop.name}") for loop in others)])

    def json(self) -> dict[str, Any]:
        """Everything, for programs."""
        request, p = self.request, self.parallel
        settings = {"model": request.model.name, "gpu": request.card.name, "devices": p.size}
        settings |= {
            name: getattr(request, name) for name in ("height", "width", "steps", "dtype", "pictures", "nodes")
        }
        settings |= {name: getattr(p, name) for name in (*AXES, "mode", "warmup_steps")}
        return {
            **settings,
            "assumed": dataclasses.asdict(request.rates),
            "memory_bytes": {
                "device": self.memory,
                "card": request.card.memory,
                "weights": self.weights,
                "carry": self.traffic.carry_bytes if self.traffic else None,
                **{f"temporaries_{loop.name}": loop.temporaries for loop in self.loops},
            },
            "estimated_denoising_seconds": self.picture_seconds,
            "estimated_pictures_per_hour": self.pictures_per_hour,
            "loops": [_loop_json(loop, self.sent(loop)) for loop in self.loops],
        }


def _loop_json(loop: Loop, sent: Mapping[str, Sent]) -> dict[str, Any]:
    body = loop.body
    return {
        "name": loop.name,
        "trace_seconds": loop.trace_seconds,
        "compile_seconds": loop.compile_seconds,
        "flops": body.flops,
        "collectives": len(body.collectives),
        "exposed": sum(c.exposed for c in body.collectives),
        "received_bytes": body.received,
        "sent_bytes": {kind: one.bytes_sent for kind, one in sent.items()},
        "exposed_bytes": sum(c.received for c in body.collectives if c.exposed),
        "estimated_step_seconds": body.seconds,
        "estimated_wait_seconds": body.waiting,
        "wait_share": body.wait_share,
        "kernels": {k: {"count": n, "estimated_seconds": s} for k, (n, s) in body.by_category().items()},
        "layers": [
            {"layer": layer, "category": category, "kernels": n, "estimated_seconds": s, "bytes": size}
            for (layer, category), (n, s, size) in body.by_layer().items()
        ],
        "copies_over_1MB": {k: {"count": n, "bytes": b} for k, (n, b) in loop.copies.items()},
        "transfers": [dataclasses.asdict(c) | {"waited": c.waited} for c in body.collectives],
    }


def plan(
    request: Request,
    layout: Mapping[str, Any],
    *,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """Compile a layout and estimate it.

    Args:
        layout: arguments of `Parallel`.
        options: XLA's, besides ours.
    """
    config = request.model.unet
    latents = {"height": request.height // 8, "width": request.width // 8}
    shared: dict[str, Any] = {**latents, "guided": request.guided, "pictures": request.pictures}
    virtual = Parallel(**layout, emulate=layout.get("mode") != "tensor")
    if virtual.mode == "tensor":
        raise DistrijaxError("mode is 'tensor'; its program is not planned: choose another, such as 'full_sync'")
    virtual.check(pictures=request.pictures, guided=request.guided)
    virtual.rows(latents["height"], config.row_multiple)
    parallel = compiling.imagined(request.card, nodes=request.nodes, **layout)
    dtype = jnp.dtype(request.dtype)
    compiled = compiling.compile_denoising(config, parallel, dtype=dtype, options=options, **shared)
    loops = []
    for program in compiled:
        memory = program.memory
        held = program.held + memory.output_size_in_bytes - memory.alias_size_in_bytes
        loops.append(
            Loop(
                program.name,
                program.text,
                read(program.text, request.rates, parallel.size // request.nodes),
                largest_copies(program.text),
                memory.temp_size_in_bytes,
                held,
                program.trace_seconds,
                program.trace_seconds + program.compile_seconds,
            )
        )
    return Plan(request, parallel, traffic(config, virtual, dtype, **shared), loops)


def layouts(devices: int, request: Request) -> list[dict[str, int]]:
    """Every sensible way to use so many devices: rows alone, guidance branches apart, pictures apart."""
    found = [{"patch": devices}]
    if request.guided and devices % 2 == 0:
        found.append({"cfg": 2, "patch": devices // 2})
    for data in range(2, devices + 1):
        if devices % data == 0 and request.pictures % data == 0:
            rest = devices // data
            found.append({"data": data, "patch": rest})
            if request.guided and rest % 2 == 0:
                found.append({"data": data, "cfg": 2, "patch": rest // 2})
    most = -(-(request.height // 8) // request.model.unet.row_multiple)
    return [layout for layout in found if layout["patch"] <= most]


def ranked(plans: Sequence[Plan]) -> list[Plan]:
    """Those that fit and make as many pictures as the first: whose batch is done first, first."""
    same = [p for p in plans if p.fits and p.request.pictures == plans[0].request.pictures]
    return sorted(same, key=lambda p: p.picture_seconds)


def compare(
    devices: int, request: Request, choices: Mapping[str, Any], tell: Callable[[str], None] = lambda layout: None
) -> list[Plan]:
    """`plan` of all `layouts`, with the same other `choices` of `Parallel`.

    Where the pictures are too few for a device each, the last plan is of so many: what the devices make at most.

    Raises:
        DistrijaxError: there is no layout of so many devices.
    """
    wanted = [(request, layout) for layout in layouts(devices, request)]
    if not wanted:
        most = -(-(request.height // 8) // request.model.unet.row_multiple)
        raise DistrijaxError(
            f"{devices} devices are too many: {most} can share a picture of {request.height} rows of pixels, twice as "
            f"many with two guidance branches; ask for fewer devices, a taller picture, or more pictures"
        )
    if request.pictures % devices:
        wanted.append((dataclasses.replace(request, pictures=devices), {"data": devices}))
    plans = []
    for each, layout in wanted:
        tell(" x ".join(f"{axis} {size}" for axis, size in layout.items()))
        plans.append(plan(each, {**choices, **layout}))
    return plans
