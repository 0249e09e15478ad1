"""Run stages within a time limit, in processes whose death costs only the stage that they are in."""

import contextlib
import dataclasses
import math
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from gpu.results import RUNNING, Json, Results

if TYPE_CHECKING:
    from gpu.setup import Setup

PATIENCE = 1.5  # times the seconds that the stages of a process should take, after which it is ended
MARGIN = 3.0  # seconds for ending a process and writing down that it was ended
TAIL = 3000  # characters of a log or a traceback


@dataclasses.dataclass(frozen=True)
class Stage:
    """A measurement.

    Attributes:
        run: returns what was measured.
        seconds: what it takes on an H100 with 16 cores; with less time left it is skipped. 0 if that is not known.
        process: consecutive stages of the same name run in one process.
    """

    run: "Callable[[Setup], Json]"
    seconds: float
    process: str


def drive(stages: Mapping[str, Stage], command: Sequence[str], results: Results, deadline: float) -> None:
    """Run the stages that have no result yet, in order.

    Args:
        command: starts a process that calls `work`; gets the option --stages, with names between semicolons.
        deadline: as of `time.time`; nothing runs longer.
    """
    results.forget_failures()
    waiting = [name for name in stages if name not in results.stages]
    while waiting:
        if skip(waiting[0], stages[waiting[0]], results, deadline):
            waiting = waiting[1:]
            continue
        group = list(next(groupby(waiting, key=lambda name: stages[name].process))[1])
        limit = PATIENCE * sum(stages[name].seconds for name in group) or math.inf
        limit = min(limit, deadline - time.time() - MARGIN)
        end = _run([*command, "--stages", ";".join(group)], results, limit)
        done = results.stages
        begun = [name for name in group if name in done] or group[:1]
        if done.get(begun[-1], RUNNING) == RUNNING:
            results.put(begun[-1], {"error": f"{end}\n{results.log.read_text(errors='replace')[-TAIL:]}"})
        waiting = waiting[len(begun) :]


def skip(name: str, stage: Stage, results: Results, deadline: float) -> bool:
    """Return whether too little time is left for a stage, and write it down if so."""
    left = deadline - time.time() - MARGIN
    if left < stage.seconds:
        results.put(name, {"skipped": f"it takes {stage.seconds:.0f} s, and {max(0, left):.0f} s are left"})
    return left < stage.seconds


def work(stages: Mapping[str, Stage], names: Sequence[str], setup: "Setup", deadline: float) -> None:
    """Run stages in this process. A stage that fails leaves its traceback as the result."""
    for name in names:
        if skip(name, stages[name], setup.results, deadline):
            continue
        setup.results.put(name, RUNNING)
        start = time.time()
        try:
            value = stages[name].run(setup)
        except Exception:
            value = {"error": traceback.format_exc()[-TAIL:]}
        setup.results.put(name, value | {"seconds": round(time.time() - start, 1)})


def _run(command: Sequence[str], results: Results, limit: float) -> str:
    """Run a process and all that it starts for `limit` seconds at most; return how it ended."""
    with results.log.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(limit)
            return f"the process ended with exit code {code}"
        except subprocess.TimeoutExpired:
            return f"ended after {limit:.0f} s, its time limit"
        finally:
            with contextlib.suppress(ProcessLookupError):  # there may be children: torch.compile leaves some behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
