"""Fit the estimate of `mode="auto"` to what `distrijax plan` says of compiled programs, and say how far it is off.

    python docs/measurements/waiting.py              # the table, from waiting.json, and what is chosen
    python docs/measurements/waiting.py --fit        # fit its numbers again: writes distrijax/parallel/auto/fitted.py
    python docs/measurements/waiting.py --compile    # first compile what waiting.json lacks; remove it for all

Compiling needs JAX's CUDA compiler, no GPU, and a minute or three for each program. A program is walked with its own
card's link, and with slower ones: PCI Express, and a network.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import minimize, nnls

from distrijax.checkpoint import find
from distrijax.parallel.auto.estimate import Estimate, Share, estimate, work
from distrijax.parallel.auto.questions import Constants, questions
from distrijax.parallel.cards import CARDS, Rates
from distrijax.parallel.options import Parallel
from distrijax.parallel.policies import BY_EXACTNESS, MODES
from distrijax.tools.plan.estimate import Request, plan
from distrijax.tools.plan.gpus import prepare_cuda_compiler
from distrijax.tools.plan.schedule import walk
from distrijax.tools.workload import Workload

STORED = Path(__file__).with_name("waiting.json")
FITTED = Path(__file__).parents[2] / "distrijax" / "parallel" / "auto" / "fitted.py"
LINKS: dict[str, dict[str, float]] = {"its own": {}, "PCIe": {"link": 0.71 * 32e9}, "network": {}}
PROGRAMS = [
    *(("h100", 1024, 1, 8, mode) for mode in BY_EXACTNESS),
    ("h100", 3840, 1, 8, "full_sync"),
    ("a100", 1024, 1, 4, "full_sync"),
    ("h100", 2048, 1, 8, "full_sync"),
    ("a100", 3840, 1, 4, "full_sync"),
    ("h100", 3840, 1, 8, "halo_sync"),
    ("h100", 1024, 2, 4, "full_sync"),
]
"""Card, pixels, cfg, patch, mode."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A compiled program of SDXL base in bfloat16 with guidance, walked with a link: seconds of a step.

    Attributes:
        kernels: seconds of the step's kernels and launches.
        seconds, waiting: of the step, and those of them that it waits.
    """

    card: str
    pixels: int
    cfg: int
    patch: int
    mode: str
    link: str
    kernels: float
    seconds: float
    waiting: float

    @property
    def rates(self) -> Rates:
        return Rates.of(CARDS[self.card], "bfloat16", **LINKS[self.link])

    @property
    def share(self) -> Share:
        return share(self.pixels, self.cfg, self.patch, network=self.link == "network")

    def estimate(self, fit: Constants) -> Estimate:
        return estimate(QUESTIONS, MODES[self.mode], self.share, self.rates, fit)


def share(pixels: int, cfg: int, patch: int, *, network: bool = False) -> Share:
    """Return what a device computes of a square picture."""
    rows, multiple = pixels // 8, UNET.row_multiple
    slab = -(-rows // (patch * multiple)) * multiple
    return Share(rows, slab, rows, 2 // cfg, patch, branches_apart=cfg == 2, network=network)


UNET = find("sdxl-base").unet
QUESTIONS = tuple(questions(UNET))


def load() -> list[Case]:
    return [Case(*row) for row in json.loads(STORED.read_text())] if STORED.exists() else []


def fitted(cases: Sequence[Case]) -> Constants:
    """Return the numbers that fit these cases: first the kernels' time, then what runs while transfers travel."""
    own = [case for case in cases if case.link == "its own"]
    rows = [np.sum([work(q, MODES[c.mode], c.share, c.rates) for q in QUESTIONS], 0) / c.kernels for c in own]
    terms, _ = nnls(np.array(rows), np.ones(len(rows)))

    def fit(hidden: np.ndarray) -> Constants:
        named = zip(("halo", "moments", "attention"), np.round(np.abs(hidden), 3).tolist(), strict=True)
        return Constants(tuple(np.round(terms, 3).tolist()), dict(named))  # type: ignore[arg-type]

    def loss(hidden: np.ndarray) -> float:
        made = fit(hidden)
        return sum((case.estimate(made).share - case.waiting / case.seconds) ** 2 for case in own)

    return fit(minimize(loss, [0.8, 0.1, 2.5], method="Nelder-Mead", options={"xatol": 0.01, "fatol": 1e-6}).x)


def compile_missing() -> None:
    """Compile what is not stored, the last phase of each, and store its cases at once."""
    prepare_cuda_compiler()
    cases = load()
    for card, pixels, cfg, patch, mode in PROGRAMS:
        if any((c.card, c.pixels, c.cfg, c.patch, c.mode) == (card, pixels, cfg, patch, mode) for c in cases):
            continue
        cases += compiled(card, pixels, cfg, patch, mode)
        text = ",\n".join(json.dumps(dataclasses.astuple(case)) for case in cases)
        STORED.write_text(f"[\n{text}\n]\n")
        print("compiled", card, pixels, cfg, patch, mode, file=sys.stderr, flush=True)


def compiled(card: str, pixels: int, cfg: int, patch: int, mode: str) -> Iterator[Case]:
    workload = Workload(find("sdxl-base"), pixels, pixels, "bfloat16", steps=50)
    layout = Parallel(cfg=cfg, patch=patch, mode=mode, emulate=True)
    program = plan(Request(workload, CARDS[card], Rates.of(CARDS[card])), layout).phases[-1].program
    yield from walked(program, card, pixels, cfg, patch, mode)


def walked(program: object, card: str, pixels: int, cfg: int, patch: int, mode: str) -> Iterator[Case]:
    """Yield the program's case with each link that makes a difference."""
    for link, replaced in LINKS.items():
        if (link == "network" and cfg > 1) or (link == "PCIe" and CARDS[card].link <= 32e9):
            continue
        rates, nodes = Rates.of(CARDS[card], "bfloat16", **replaced), 2 if link == "network" else 1
        step = walk(program, rates, cfg * patch // nodes)  # type: ignore[arg-type]
        kernels = sum(kernel.took for kernel in step.kernels) + step.launches * rates.graph
        numbers = (float(f"{x:.4g}") for x in (kernels, step.seconds, step.waiting))
        yield Case(card, pixels, cfg, patch, mode, link, *numbers)


def main() -> None:
    if "--compile" in sys.argv:
        compile_missing()
    cases = load()
    if "--fit" in sys.argv or "--compile" in sys.argv:
        fit = fitted(cases)
        FITTED.write_text(
            '"""Written by `python docs/measurements/waiting.py --fit`, from programs that XLA compiled."""\n\n'
            "from distrijax.parallel.auto.questions import Constants\n\n"
            f"FITTED = Constants({fit.terms}, {json.dumps(fit.hidden)})\n"
        )
    else:
        from distrijax.parallel.auto.fitted import FITTED as fit
    print("| card, devices, pixels | mode | link | step, ms: plan | estimate | waits: plan | estimate |")
    print("|---|---|---|---|---|---|---|")
    for case in cases:
        found, devices = case.estimate(fit), f"{case.card.upper()}, cfg {case.cfg} x patch {case.patch}"
        steps = f"{1e3 * case.seconds:.4g} | {1e3 * found.seconds:.4g}"
        waits = f"{100 * case.waiting / case.seconds:.1f} % | {100 * found.share:.1f} %"
        print(f"| {devices}, {case.pixels} | {case.mode} | {case.link} | {steps} | {waits} |")
    print_choices(fit)


def print_choices(fit: Constants) -> None:
    """Print what is estimated for every mode that `auto` chooses from, the chosen one in bold."""
    print("\n| devices, `patch` | picture |", *(f"`{mode}` |" for mode in BY_EXACTNESS))
    print("|---|---|" + "---|" * len(BY_EXACTNESS))
    for card, patch in (("h100", 8), ("a100", 4)):
        for pixels in (1024, 2048, 3840):
            size, rates = share(pixels, 1, patch), Rates.of(CARDS[card])
            found = {mode: estimate(QUESTIONS, MODES[mode], size, rates, fit).share for mode in BY_EXACTNESS}
            chosen = [mode for mode in BY_EXACTNESS if found[mode] <= Parallel.max_waiting][:1]
            cells = (
                f"**{100 * x:.1f} %** |" if [mode] == chosen else f"{100 * x:.1f} % |" for mode, x in found.items()
            )
            print(f"| {patch} {card.upper()}s | {pixels}x{pixels} |", *cells)


if __name__ == "__main__":
    main()
