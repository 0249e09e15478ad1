"""Timed runs: warmed up, taken in turn, each waited for."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from distrijax.runtime.compile import Report

PAUSE = 0.3  # seconds between the runs of two frameworks: threads of the one before spin for 0.2 s (OpenMP) and disturb


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes:
        run: of what `prepare` made; what it returns is waited for.
        prepare: makes the arguments of a run, out of time: such as arrays that a run uses up.
        per: what a run's seconds are divided by, such as its steps.
    """

    run: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None
    per: int = 1


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of every run, in order, the warm-up not among them."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def json(self) -> dict[str, Any]:
        """Everything in seconds."""
        ends = {"median": self.median, "min": min(self.seconds), "max": max(self.seconds)}
        return ends | {"seconds": list(self.seconds)}

    def __str__(self) -> str:
        return f"{self.median:9.4f} s   ({min(self.seconds):.4f} to {max(self.seconds):.4f})"


def take_turns(
    works: Mapping[str, Work], *, runs: int, warm_up: int = 1, pause: float = 0.0, report: Report = lambda message: None
) -> dict[str, Times]:
    """`runs` runs of each, one of each in turn, so that whatever else the machine does meets them all alike.

    Args:
        warm_up: runs of each before, which do not count.
        pause: seconds to wait before every run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for i in range(warm_up + runs):
        report(f"warm-up {i + 1} of {warm_up}" if i < warm_up else f"run {i - warm_up + 1} of {runs}")
        for name, work in works.items():
            arguments = jax.block_until_ready(work.prepare())
            time.sleep(pause)
            start = time.perf_counter()
            jax.block_until_ready(work.run(arguments))
            if i >= warm_up:
                seconds[name].append((time.perf_counter() - start) / work.per)
    return {name: Times(tuple(values)) for name, values in seconds.items()}
