"""The kernels of a step as the profiler sees them, summed by kind, beside what the plan expects of them."""

import dataclasses
import re
import tempfile
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax

from distrijax.parallel.cards import CARDS, Rates
from distrijax.tools.plan.reading import read
from distrijax.tools.plan.schedule import walk
from gpu.results import Json

LIBRARIES = {  # kinds of the kernels that are not XLA's own, by name; the first that matches
    "attention": r"sdpa|fmha|flash",
    "convolutions": r"fprop|conv|dgrad",
    "products": r"gemm|nvjet|cutlass|cublas|splitk",
    "copies": r"memcpy|memset|copy",
}
LONGEST = 10


@dataclasses.dataclass(frozen=True)
class Event:
    """A kernel that ran: its own name, and the instruction of the program that it belongs to, where that is known."""

    kernel: str
    instruction: str
    milliseconds: float


@dataclasses.dataclass(frozen=True)
class Planned:
    """What the plan expects of an instruction."""

    kind: str
    layer: str
    flops: int
    milliseconds: float


Plan = Mapping[str, Planned]  # by instruction


def trace(run: Callable[[], object]) -> list[Event]:
    """Return the kernels of one run. CUDA graphs hide the instruction of a kernel, not its name."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    events = list(_events(planes, on_gpu=jax.default_backend() == "gpu"))
    if not events:
        raise RuntimeError("the profiler saw no kernels; is CUPTI installed, and may this user read it?")
    return events


def _events(planes: Sequence[jax.profiler.ProfilePlane], *, on_gpu: bool) -> Iterator[Event]:
    for plane in planes:
        for line in plane.lines:
            for event in line.events:
                instruction = str(dict(event.stats).get("hlo_op") or "")
                # A GPU's streams; other lines repeat them. On a CPU, all that belongs to an instruction.
                if ("GPU" in plane.name and line.name.startswith("Stream")) if on_gpu else instruction:
                    yield Event(event.name, instruction, event.duration_ns / 1e6)


def plan(text: str, dtype: str, device: str) -> Plan:
    """Return what the plan expects of a compiled program, if it knows the device."""
    card = next((card for name, card in CARDS.items() if name in device.lower()), None)
    if card is None:
        return {}
    try:
        kernels = walk(read(text), Rates.of(card, dtype), 1).kernels
        return {k.name: Planned(k.category, k.layer, k.flops, 1000 * k.took) for k in kernels}
    except Exception:  # what was measured counts, whether or not the plan can read the program
        traceback.print_exc()
        return {}


def by_kind(events: Sequence[Event], planned: Plan, steps: int) -> Json:
    """Return launches and milliseconds of a step by kind, planned ones too, and in all."""
    named = {_kernel_name(name): kernel.kind for name, kernel in planned.items()}
    launches = Counter[str]()
    took, expected = defaultdict[str, float](float), defaultdict[str, float](float)
    for event in events:
        kind = _kind(event, planned, named)
        launches[kind] += 1
        took[kind] += event.milliseconds
    for kernel in planned.values():
        expected[kernel.kind] += kernel.milliseconds
    return {
        "launches": round(len(events) / steps, 1),
        "milliseconds": round(sum(took.values()) / steps, 3),
        "planned_milliseconds": round(sum(expected.values()), 3) if planned else None,
        "kinds": {
            kind: {
                "launches": round(count / steps, 1),
                "milliseconds": round(took[kind] / steps, 3),
                "planned_milliseconds": round(expected[kind], 3) if planned else None,
            }
            for kind, count in sorted(launches.items(), key=lambda item: -took[item[0]])
        },
    }


def longest(events: Sequence[Event], planned: Plan, steps: int) -> list[Json]:
    """Return the kinds of layer and kernel that take most of a step, with what the plan expects of them."""
    groups: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in events:
        layer = planned[event.instruction].layer if event.instruction in planned else ""
        groups[".".join([part for part in layer.split(".") if not part.isdigit()][-2:]), event.kernel].append(event)
    ranked = sorted(groups.items(), key=lambda item: -sum(event.milliseconds for event in item[1]))
    return [
        {
            "layer": layer,
            "kernel": name[:80],
            "launches": round(len(group) / steps, 1),
            "milliseconds": round(sum(event.milliseconds for event in group) / steps, 3),
            "planned_milliseconds": round(
                sum(planned[e.instruction].milliseconds for e in group if e.instruction in planned) / steps, 3
            ),
        }
        for (layer, name), group in ranked[:LONGEST]
    ]


def _kind(event: Event, planned: Plan, named: Mapping[str, str]) -> str:
    if event.instruction in planned:
        return planned[event.instruction].kind
    if event.kernel in named:
        return named[event.kernel]
    matches = (kind for kind, pattern in LIBRARIES.items() if re.search(pattern, event.kernel, re.IGNORECASE))
    return next(matches, "elementwise and norms")


def _kernel_name(instruction: str) -> str:
    """Return the name that XLA gives the kernel of an instruction."""
    return re.sub(r"[.\-]", "_", instruction)
