"""Set what `distrijax plan` estimates beside what was measured, as a table for docs/performance.md.

    python docs/measurements/plan.py              # from the stored kernels and transfers of each program, plan.json.xz
    python docs/measurements/plan.py --compile    # after compiling what is not stored (CUDA compiler, minutes each)

The H200 ran these programs one device at a time, with local copies in place of transfers, four steps a dispatch; of
which the median of four counts. What eight A100s did is DistriFusion's, a program in PyTorch: 50 steps, five of them
synchronous, without a split of the guidance branches (https://arxiv.org/abs/2402.19481).
"""

import dataclasses
import json
import lzma
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from distrijax.parallel.cards import CARDS, Rates
from distrijax.tools.plan.gpus import prepare_cuda_compiler
from distrijax.tools.plan.kernels import Work
from distrijax.tools.plan.schedule import Step, Transfer, walk

STORED = Path(__file__).with_name("plan.json.xz")
ALONE = {"link": 1e18, "network": 1e18, "latency": 1e-12, "network_latency": 1e-12, "slowed": 1e-12}
H200 = Rates.of(
    CARDS["h200"], "bfloat16", **ALONE, dispatch=10.5e-3
)  # as its host took with that day's program, 9 to 11.5 ms
H200_STEPS = 4
# stage of the run: cfg, patch, pixels
STEPS = {
    "1024, one": (1, 1, 1024), "1024, one of 2": (2, 1, 1024), "1024, one of 4": (2, 2, 1024),
    "1024, one of 8": (2, 4, 1024), "2048, one": (1, 1, 2048), "2048, one of 8": (2, 4, 2048),
    "3840, one": (1, 1, 3840), "3840, one of 8": (2, 4, 3840),
}  # fmt: skip
# patch, pixels, seconds of a picture
PICTURES = [
    ("one device", 1, 1024, 5.02), ("displaced", 2, 1024, 3.35), ("displaced", 4, 1024, 2.26),
    ("displaced", 8, 1024, 1.77), ("synchronous", 8, 1024, 2.21), ("no transfers", 8, 1024, 1.48),
    ("one device", 1, 2048, 23.7), ("displaced", 2, 2048, 13.3), ("displaced", 4, 2048, 7.60),
    ("displaced", 8, 2048, 4.81), ("synchronous", 8, 2048, 5.62), ("no transfers", 8, 2048, 4.14),
    ("one device", 1, 3840, 140.0), ("displaced", 2, 3840, 76.6), ("displaced", 4, 3840, 41.3),
    ("displaced", 8, 3840, 22.9), ("synchronous", 8, 3840, 24.7), ("no transfers", 8, 3840, 21.3),
]  # fmt: skip
FITTED = {("h200", 1, 1024), ("h200", 8, 1024), ("a100", "no transfers", 8, 1024), ("a100", "synchronous", 8, 1024)}
FITTED |= {("h200", 4, 1024), ("a100", "displaced", 8, 3840)}


@dataclasses.dataclass(frozen=True)
class Case:
    """What was measured, in seconds, and what the plan says; whether a number of the plan was fitted to it."""

    card: str
    name: str
    measured: float
    estimated: float
    fitted: bool

    @property
    def error(self) -> float:
        return self.estimated / self.measured - 1


def cases() -> Iterator[Case]:
    """Yield all whose program is stored."""
    programs = load()
    measured = json.loads((STORED.parent / "h200-2026-11-27.json").read_text())["stages"]
    for key, (cfg, patch, pixels) in STEPS.items():
        phase = "displaced" if patch > 1 else "synchronous"
        step = walk(programs[f"h200-{pixels}-{cfg}-{patch}-{phase}"], H200, 8).seconds + H200.dispatch / H200_STEPS
        name = f"{pixels}x{pixels}, " + ("one card" if cfg == 1 else f"one of {cfg * patch}")
        milliseconds = statistics.median(measured[key]["step_ms"])
        yield Case("h200", name, milliseconds / 1e3, step, ("h200", cfg * patch, pixels) in FITTED)
    a100 = Rates.of(CARDS["a100"])
    for kind, patch, pixels, seconds in PICTURES:
        rates = Rates.of(CARDS["a100"], "bfloat16", **ALONE) if kind == "no transfers" else a100
        phases = {"no transfers": ("displaced",), "displaced": ("synchronous", "displaced")}.get(kind, ("synchronous",))
        found = [programs[name] for p in phases if (name := f"a100-{pixels}-1-{patch}-{p}") in programs]
        if not found:
            continue
        steps = [walk(step, rates, 8).seconds for step in found]
        picture = 8 * rates.dispatch + 5 * steps[0] + 45 * steps[-1]
        devices = "one card" if patch == 1 else f"{patch} cards, {kind}"
        yield Case("a100", f"{pixels}x{pixels}, {devices}", seconds, picture, ("a100", kind, patch, pixels) in FITTED)


def load() -> dict[str, Step]:
    stored = json.loads(lzma.decompress(STORED.read_bytes()))
    kinds = {"work": Work, "transfer": Transfer}
    items = [
        item if isinstance(item, str) else kinds[item[0]](*(_tuples(value) for value in item[1:]))
        for item in stored["items"]
    ]
    return {name: [items[index] for index in step] for name, step in stored["programs"].items()}


def store(programs: dict[str, Step]) -> None:
    """Store each different kernel once, without its name."""
    indices: dict[str, int] = {}
    written = {}
    for name, step in programs.items():
        rows = []
        for item in step:
            if isinstance(item, Work):
                row = json.dumps(["work", *dataclasses.astuple(dataclasses.replace(item, name="", layer=""))])
            elif isinstance(item, Transfer):
                row = json.dumps(["transfer", *dataclasses.astuple(dataclasses.replace(item, layer=""))])
            else:
                row = json.dumps(item)
            rows.append(indices.setdefault(row, len(indices)))
        written[name] = rows
    text = f'{{"items": [{", ".join(indices)}], "programs": {json.dumps(written)}}}'
    STORED.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def compile_missing() -> None:
    """Compile what is not stored, which takes minutes a program, and store it at once."""
    prepare_cuda_compiler()
    from distrijax import Parallel
    from distrijax.checkpoint import find
    from distrijax.tools.plan.estimate import Request, plan
    from distrijax.tools.workload import Workload

    programs = load() if STORED.exists() else {}
    layouts = {("h200", pixels, cfg, patch) for cfg, patch, pixels in STEPS.values()}
    layouts |= {("a100", pixels, 1, patch) for _, patch, pixels, _ in PICTURES}
    for card, pixels, cfg, patch in sorted(layouts):
        phases = ("synchronous", "displaced") if patch > 1 and card == "a100" else ("displaced",) if patch > 1 else ()
        if all(f"{card}-{pixels}-{cfg}-{patch}-{phase}" in programs for phase in phases or ("synchronous",)):
            continue
        workload = Workload(find("sdxl-base"), pixels, pixels, "bfloat16", steps=50)
        request = Request(workload, CARDS[card], Rates.of(CARDS[card]))
        for phase in plan(request, Parallel(cfg=cfg, patch=patch, mode="corrected_async_gn", emulate=True)).phases:
            programs[f"{card}-{pixels}-{cfg}-{patch}-{phase.name}"] = phase.program
        store(programs)
        print("compiled", card, pixels, cfg, patch, file=sys.stderr, flush=True)


def main() -> None:
    if "--compile" in sys.argv:
        compile_missing()
    for card, unit, factor in (("h200", "ms a step", 1e3), ("a100", "s a picture of 50 steps", 1)):
        print(f"| {CARDS[card].name}, {unit} | measured | plan | error |\n|---|---|---|---|")
        for case in cases():
            if case.card == card:
                mark = " (fitted)" if case.fitted else ""
                numbers = f"{factor * case.measured:.4g} | {factor * case.estimated:.4g} | {100 * case.error:+.0f} %"
                print(f"| {case.name}{mark} | {numbers} |")
        print()


if __name__ == "__main__":
    main()
