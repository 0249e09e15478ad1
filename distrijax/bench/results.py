"""What `distrijax bench` measures: each question a function, its answer rows of a table."""

import dataclasses
import gc
from collections.abc import Iterable, Sequence
from typing import Any

from distrijax.bench import against, picture, share, step, weights
from distrijax.bench.machine import machine
from distrijax.bench.step import Case
from distrijax.bench.timing import PAUSE, Times, take_turns
from distrijax.models.unet import UNet
from distrijax.parallel.mesh import Parallel
from distrijax.runtime.compile import Report

SWEEPS = {"pixels": "pixels of a side", "steps": "denoising steps", "devices": "devices"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        at: of a sweep, the value.
        ratio: of its median to the first row's that it is measured beside.
    """

    name: str
    times: Times
    compile_seconds: float | None = None
    at: int | None = None
    ratio: float | None = None

    def json(self) -> dict[str, Any]:
        rest = {"name": self.name, "compile_seconds": self.compile_seconds, "at": self.at, "ratio": self.ratio}
        return {name: value for name, value in rest.items() if value is not None} | self.times.json()


@dataclasses.dataclass(frozen=True)
class Answer:
    """Attributes:

    title: what was measured, for people.
    facts: single numbers besides, by name.
    """

    title: str
    rows: list[Row]
    facts: dict[str, float] = dataclasses.field(default_factory=dict)

    def json(self, settings: dict[str, Any]) -> dict[str, Any]:
        """With hardware and versions."""
        rows = [row.json() for row in self.rows]
        return {"machine": machine(), "settings": settings, "title": self.title, "rows": rows, "facts": self.facts}

    def __str__(self) -> str:
        lines = [self.title]
        for row in self.rows:
            at = "" if row.at is None else f"{row.at:>8,}  "
            compiled = "" if row.compile_seconds is None else f"   compiled in {row.compile_seconds:.1f} s"
            ratio = "" if row.ratio is None else f"   {row.ratio:.2f} of the first"
            lines.append(f"  {at}{row.name:<26}{row.times}{ratio}{compiled}")
        return "\n".join([*lines, *(f"  {name}: {value:.4g}" for name, value in self.facts.items())])


@dataclasses.dataclass(frozen=True)
class Effort:
    """How often each is run."""

    runs: int = 5
    warm_up: int = 1
    report: Report = lambda message: None


def steps(case: Case, parallel: Parallel, effort: Effort, unet: UNet | None = None) -> Answer:
    """A denoising step of either kind on these devices."""
    case.rows(parallel)
    works, seconds = step.works(case, unet or _unet(case, parallel, effort), parallel)
    times = take_turns(works, **dataclasses.asdict(effort))
    return Answer(
        f"one denoising step, {_size(case)}, {_layout(parallel)}",
        [Row(f"{name} step", t, seconds[name]) for name, t in times.items()],
    )


def pictures(case: Case, parallel: Parallel, effort: Effort, *, count: int) -> Answer:
    """Whole pictures of `count` denoising steps."""
    first, times = picture.pictures(case, parallel, steps=count, runs=effort.runs, report=effort.report)
    return Answer(
        f"one picture of {count} steps, {_size(case)}, {_layout(parallel)}",
        [Row(name, t) for name, t in times.items()],
        {f"to the first picture, {name}": value for name, value in first.items()},
    )


def shares(case: Case, devices: Sequence[int], effort: Effort, *, cfg: int, mode: str) -> Answer:
    """A step's work of one of so many devices, for each number of them; what one device does alone comes first.

    Facts: how many times faster than one device the arithmetic of each allows, if no transfer were waited for.
    """
    layouts = [share.layout(n, cfg=1 if n == 1 else cfg, mode=mode) for n in devices]
    parts = [share.Share(case, layout) for layout in layouts]
    unet, rows = _unet(case, Parallel(), effort), []
    for n, part in zip(devices, parts, strict=True):
        effort.report(f"share of {n}")
        works, seconds = part.works(unet)
        times = take_turns(works, **dataclasses.asdict(effort))
        rows += [Row(f"one of {n}, {name}", t, seconds[name], at=n) for name, t in times.items()]
    alone = next((row.times.median for row in rows if row.at == 1), None)
    facts = {f"speed-up that the arithmetic allows, {row.name}": alone / row.times.median for row in rows if alone}
    return Answer(f"one device's share of a step, {_size(case)}, cfg={cfg}, {mode}", rows, facts)


def beside(peers: Sequence[str], case: Case, effort: Effort, *, compile_torch: bool) -> Answer:
    """A step of the U-Net in distrijax and in each of these peers, in turn."""
    against.check(case, peers)
    effort.report("making the model")
    arrays = weights.arrays(case.model, "unet", case.dtype, Parallel().replicated)
    works, seconds, distances = against.works(case, arrays, peers, compile_torch=compile_torch)
    times = take_turns(works, pause=PAUSE, **dataclasses.asdict(effort))
    first = times["distrijax"].median
    rows = [Row(name, t, seconds.get(name), ratio=t.median / first) for name, t in times.items()]
    title = f"one step of the U-Net, {_size(case)}, one device, same weights"
    return Answer(title, rows, {f"relative L2 distance to {name}": value for name, value in distances.items()})


def sweep(what: str, values: Sequence[int], case: Case, parallel: Parallel, effort: Effort) -> Answer:
    """Cost as it grows: of a step with the picture's pixels, of a picture's steps together, of a share with devices."""
    if what == "devices":
        answer = shares(case, values, effort, cfg=parallel.cfg, mode=parallel.mode)
        rows = [dataclasses.replace(row, name=row.name.split(", ")[-1] + " step") for row in answer.rows]
        return dataclasses.replace(answer, rows=rows)
    cases = [dataclasses.replace(case, **_grown(what, value)) for value in values]
    for each in cases:
        each.rows(parallel)
    unet, rows = _unet(case, parallel, effort), []
    for value, each in zip(values, cases, strict=True):
        effort.report(f"{what}: {value}")
        answer = steps(each, parallel, effort, unet)
        rows += [dataclasses.replace(row, at=value) for row in answer.rows]
    if what == "steps":
        rows = [
            Row(
                row.name.removesuffix("step") + "steps together",
                _times(row.times, row.at or 1),
                row.compile_seconds,
                row.at,
            )
            for row in rows
        ]
    size = f", {case.model.name}, {case.dtype}" if what == "pixels" else f", {_size(case)}"
    return Answer(f"cost as {SWEEPS[what]} grow{size}, {_layout(parallel)}", rows)


def _grown(what: str, value: int) -> dict[str, Any]:
    return {"height": value, "width": value} if what == "pixels" else {"steps": value}


def _times(times: Times, factor: int) -> Times:
    return Times(tuple(factor * seconds for seconds in times.seconds))


def _unet(case: Case, parallel: Parallel, effort: Effort) -> UNet:
    gc.collect()
    effort.report("making the model" if case.model.source is None else "loading the model")
    return case.unet(parallel)


def _size(case: Case) -> str:
    branches = "with guidance" if case.branches == 2 else "without guidance"
    return f"{case.model.name}, {case.height}x{case.width}, {case.pictures} a batch, {branches}, {case.dtype}"


def _layout(parallel: Parallel) -> str:
    virtual = " virtual" if parallel.emulate else ""
    return f"data={parallel.data} x cfg={parallel.cfg} x patch={parallel.patch}{virtual} ({parallel.mode})"


def by_value(rows: Iterable[Row]) -> dict[int, dict[str, Times]]:
    """Of a sweep: value -> name -> times."""
    found: dict[int, dict[str, Times]] = {}
    for row in rows:
        assert row.at is not None
        found.setdefault(row.at, {})[row.name] = row.times
    return found
