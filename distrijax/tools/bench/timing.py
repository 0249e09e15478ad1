"""Timed runs: warmed up, in turn, each waited for."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from distrijax.runtime.compile import Report


@dataclasses.dataclass(frozen=True)
class TimedFunction:
    """A function to time.

    Attributes:
        run: takes what `prepare` returns; its result is waited for.
        prepare: makes the arguments of a run, untimed: for example arrays that a run donates.
        repeats: units of work in a run, such as steps; times are divided by it.
        compile_seconds: the time that its compilation took, if it is compiled.
    """

    run: Callable[[Any], object]
    prepare: Callable[[], object] = lambda: None
    repeats: int = 1
    compile_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of every timed run, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __mul__(self, factor: int) -> "Times":
        return Times(tuple(factor * seconds for seconds in self.seconds))

    def json(self) -> dict[str, object]:
        ends = {"median": self.median, "min": min(self.seconds), "max": max(self.seconds)}
        return ends | {"seconds": list(self.seconds)}

    def __str__(self) -> str:
        return f"{self.median:9.4f} s   ({min(self.seconds):.4f} to {max(self.seconds):.4f})"


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """How often each function runs, timed and before that untimed, and who is told of the progress."""

    runs: int = 5
    warm_up: int = 1
    report: Report = lambda message: None


def take_turns(
    functions: Mapping[str, TimedFunction], settings: RunSettings, *, pause: float = 0.0
) -> dict[str, Times]:
    """Time the functions in turn, one run of each at a time, so that other load on the machine affects all alike.

    Args:
        pause: seconds to wait before every run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(-settings.warm_up, settings.runs):
        settings.report(f"run {i + 1} of {settings.runs}" if i >= 0 else f"warm-up, {-i} to go")
        for name, function in functions.items():
            arguments = jax.block_until_ready(function.prepare())
            time.sleep(pause)
            start = time.perf_counter()
            jax.block_until_ready(function.run(arguments))
            if i >= 0:
                seconds[name].append((time.perf_counter() - start) / function.repeats)
    return {name: Times(tuple(values)) for name, values in seconds.items()}
