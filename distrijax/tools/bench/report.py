"""What was measured, as a table for people and as JSON with the hardware and versions."""

import dataclasses
import os
import platform
from importlib.metadata import distributions
from pathlib import Path

import jax

from distrijax.tools.bench.timing import Times

PACKAGES = ("distrijax", "jax", "jaxlib", "flax", "jax-cuda12-plugin", "jax-cuda13-plugin", "torch", "diffusers")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One line of the table.

    Attributes:
        at: in a sweep, the value of what is swept.
        ratio: of its median to that of the first line that it is compared with.
    """

    name: str
    times: Times
    compile_seconds: float | None = None
    at: int | None = None
    ratio: float | None = None

    def json(self) -> dict[str, object]:
        rest = {"name": self.name, "compile_seconds": self.compile_seconds, "at": self.at, "ratio": self.ratio}
        return {name: value for name, value in rest.items() if value is not None} | self.times.json()

    def __str__(self) -> str:
        at = "" if self.at is None else f"{self.at:>8,}  "
        compiled = "" if self.compile_seconds is None else f"   compiled in {self.compile_seconds:.1f} s"
        ratio = "" if self.ratio is None else f"   {self.ratio:.2f} of the first"
        return f"  {at}{self.name:<26}{self.times}{ratio}{compiled}"


@dataclasses.dataclass(frozen=True)
class BenchReport:
    """Measurements that belong together, with `facts`: single numbers besides, by name."""

    title: str
    measurements: list[Measurement]
    facts: dict[str, float] = dataclasses.field(default_factory=dict)

    def json(self, settings: dict[str, object]) -> dict[str, object]:
        lines = [measurement.json() for measurement in self.measurements]
        return {"machine": machine(), "settings": settings, "title": self.title, "rows": lines, "facts": self.facts}

    def __str__(self) -> str:
        facts = [f"  {name}: {value:.4g}" for name, value in self.facts.items()]
        return "\n".join([self.title, *map(str, self.measurements), *facts])


def machine() -> dict[str, object]:
    """Return hardware and versions. Packages that are not installed are left out."""
    devices = jax.devices()
    return {
        "devices": len(devices),
        "device": devices[0].device_kind,
        "platform": devices[0].platform,
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,  # includes that of other programs
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {one.name: one.version for one in distributions() if one.name in PACKAGES},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
