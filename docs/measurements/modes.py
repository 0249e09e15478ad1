"""Estimate what a step costs in each mode on eight H100s, for the figure of docs/quality.md.

    python docs/measurements/modes.py --compile                     # what is not stored (CUDA compiler, minutes each)
    python docs/measurements/modes.py --compile --modes predicted   # these again: their schedules have changed
    python docs/measurements/modes.py                               # a table of what is stored

Each program is compiled for SDXL in bf16 with guidance, as `distrijax plan` does. modes.json has the seconds of a step
by size, mode and phase, and the part of a step that waits for transfers; it is written after every program.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from distrijax import Parallel
from distrijax.checkpoint import find
from distrijax.parallel.cards import CARDS, Rates
from distrijax.parallel.policies import MODES
from distrijax.tools.plan.estimate import Request, plan
from distrijax.tools.plan.gpus import prepare_cuda_compiler
from distrijax.tools.workload import Workload

STORED = Path(__file__).with_name("modes.json")
CARD, CFG, PATCH, SIZES = "h100", 2, 4, (1024, 3840)
ONE_DEVICE = "one device"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="compile what is not stored")
    parser.add_argument("--modes", nargs="+", choices=tuple(MODES), help="with --compile: these, stored or not")
    options = parser.parse_args(arguments)
    stored = load(STORED)
    if options.compile:
        compile_missing(stored, options.modes)
    print(table(stored))


def load(path: Path) -> dict[str, Any]:
    """Return what is stored, without modes that no longer exist."""
    if not path.exists():
        return {"card": f"{CARD.upper()}s", "cfg": CFG, "patch": PATCH, "sizes": {}}
    stored = json.loads(path.read_text())
    for modes in stored["sizes"].values():
        for gone in set(modes) - set(MODES) - {ONE_DEVICE}:
            del modes[gone]
    return stored


def compile_missing(stored: dict[str, Any], again: list[str] | None) -> None:
    """Compile the programs that are not stored, and those of the modes `again`."""
    prepare_cuda_compiler()
    for size in SIZES:
        modes = stored["sizes"].setdefault(str(size), {})
        for mode in (ONE_DEVICE, *MODES):
            if mode in (again or ()) or mode not in modes:
                modes[mode] = compiled(size, mode)
                STORED.write_text(json.dumps(stored, indent=1) + "\n")
                print(f"compiled {mode} at {size}", flush=True)


def compiled(size: int, mode: str) -> dict[str, float]:
    """Return the seconds of a step in each phase of a mode, and the part of the last phase's step that waits."""
    card = CARDS[CARD]
    request = Request(Workload(find("sdxl-base"), size, size, "bfloat16", steps=50), card, Rates.of(card))
    alone = mode == ONE_DEVICE
    layout = Parallel(emulate=True) if alone else Parallel(cfg=CFG, patch=PATCH, mode=mode, emulate=True)
    phases = plan(request, layout).phases
    return {phase.name: phase.step.seconds for phase in phases} | {"waiting": phases[-1].step.wait_share}


def table(stored: dict[str, Any]) -> str:
    """Return a Markdown table of the milliseconds of a step after the warm-up, and what of it is waiting."""
    head = ["ms a step, waiting", *(f"{size}x{size}" for size in stored["sizes"])]
    lines = [head, ["---"] * len(head)]
    for mode in (ONE_DEVICE, *MODES):
        steps = [modes.get(mode) for modes in stored["sizes"].values()]
        cells = [
            f"{1e3 * s.get('displaced', s['synchronous']):.1f}, {100 * s['waiting']:.1f} %" if s else "" for s in steps
        ]
        lines.append([f"`{mode}`" if mode in MODES else mode, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
