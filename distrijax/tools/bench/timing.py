"""Timed runs: warmed up, in turn, each waited for; and the report of them."""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

import jax

from distrijax.runtime.compile import Report

PACKAGES = ("distrijax", "jax", "jaxlib", "flax", "jax-cuda12-plugin", "jax-cuda13-plugin", "torch", "diffusers")


@dataclasses.dataclass(frozen=True)
class TimedFunction:
    """A function to time.

    Attributes:
        prepare: called before every run, untimed; returns the function to time, whose result is waited for. A program
            that consumes its inputs gets new ones here.
        repeats: units of work in a run, such as steps; times are divided by it.
        compile_seconds: the time that its compilation took, if it is compiled.
    """

    prepare: Callable[[], Callable[[], object]]
    repeats: int = 1
    compile_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """How often each function runs, timed and before that untimed, and who is told of the progress."""

    runs: int = 5
    warm_up: int = 1
    report: Report = lambda message: None


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One line of a report.

    Attributes:
        seconds: of every timed run, in order.
        devices: for a share: the number of devices.
    """

    name: str
    seconds: tuple[float, ...]
    compile_seconds: float | None = None
    devices: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        devices = "" if self.devices is None else f"{self.devices:>4}  "
        compiled = "" if self.compile_seconds is None else f"   compiled in {self.compile_seconds:.1f} s"
        unit, factor = ("ms", 1e3) if self.median < 0.1 else ("s", 1.0)
        low, middle, high = (f"{factor * x:.4f}" for x in (min(self.seconds), self.median, max(self.seconds)))
        times = f"{middle:>9} {unit}   ({low} to {high})"
        return f"  {devices}{self.name:<26}{times}{compiled}"


@dataclasses.dataclass(frozen=True)
class BenchReport:
    """Measurements that belong together, with `facts`: single numbers besides, by name."""

    title: str
    measurements: Sequence[Measurement]
    facts: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def json(self, settings: Mapping[str, object]) -> dict[str, object]:
        return {"machine": machine(), "settings": settings, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        facts = [f"  {name}: {value:.4g}" for name, value in self.facts.items()]
        return "\n".join([self.title, *map(str, self.measurements), *facts])


def take_turns(
    functions: Mapping[str, TimedFunction],
    settings: RunSettings,
    *,
    devices: int | None = None,
    pause: float = 0.0,
) -> list[Measurement]:
    """Time the functions in turn, one run of each at a time, so that other load on the machine affects all alike.

    Args:
        devices: for the report, see `Measurement`.
        pause: seconds to wait before every run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(-settings.warm_up, settings.runs):
        settings.report(f"run {i + 1} of {settings.runs}" if i >= 0 else f"warm-up, {-i} to go")
        for name, function in functions.items():
            run = function.prepare()
            time.sleep(pause)
            start = time.perf_counter()
            jax.block_until_ready(run())
            if i >= 0:
                seconds[name].append((time.perf_counter() - start) / function.repeats)
    return [Measurement(name, tuple(seconds[name]), f.compile_seconds, devices) for name, f in functions.items()]


def machine() -> dict[str, object]:
    """Return hardware and versions. Packages that are not installed are left out."""
    devices, info = jax.devices(), Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpus = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "devices": len(devices),
        "device": devices[0].device_kind,
        "cpu": cpus[0] if cpus else platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,  # includes that of other programs
        "versions": {one.name: one.version for one in distributions() if one.name in PACKAGES},
    }
