"""Several processes make the pictures that one makes: real ones, on CPUs, that send each other everything by gloo.

Each topology is launched once and makes all its pictures in one go, since a process costs half a minute of compiling.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distrijax.checkpoint import convert
from distrijax.demo import MODEL
from distrijax.errors import DistrijaxError
from distrijax.runtime import agreement, processes
from distrijax.runtime.watch import SILENCE

WORKER = Path(__file__).parent / "process_worker.py"
HARD_LIMIT = 500  # seconds for a launch, on a machine that has much else to do
NOTICED = SILENCE + 15  # seconds, some of them for a busy machine

# Measured: equal to the bit, as the programs and the order of every sum are those of one process. A grey level is 4e-3,
# what a device has wrongly from another one changes the picture by 1e-2 and more.
ROUNDING = 1e-5


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


class Launch:
    """Runs the processes of one program until all have ended: their exit codes, their output, and when each ended."""

    def __init__(self, folder: Path, devices: int, indices: list[int], count: int, *arguments: str):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        address = free_address()
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(WORKER.parents[1])}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]
        self.logs = {i: folder / f"log-{i}" for i in indices}
        running: dict[int, subprocess.Popen[bytes]] = {}
        self.codes: dict[int, int] = {}
        self.ended: dict[int, float] = {}
        start = time.monotonic()
        try:
            for i in indices:
                command = [sys.executable, WORKER, address, count, i, devices, folder, *arguments]
                with open(self.logs[i], "wb") as log:
                    running[i] = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)
            while len(self.codes) < len(indices) and time.monotonic() < start + HARD_LIMIT:
                for i, process in running.items():
                    if i not in self.codes and (code := process.poll()) is not None:
                        self.codes[i], self.ended[i] = code, time.monotonic() - start
                time.sleep(0.05)
        finally:
            for process in running.values():
                process.kill()
                process.wait()
        assert len(self.codes) == len(indices), f"only {sorted(self.codes)} of {indices} ended: {self.said(0)}"

    def said(self, index: int) -> str:
        return self.logs[index].read_text(errors="replace")

    def pictures(self, name: str, index: int = 0) -> np.ndarray:
        path = self.folder / f"{name}-{index}.npy"
        assert path.exists(), self.said(index)
        return np.load(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, converted: this form is read by orbax, the other by us."""
    return convert(MODEL, tmp_path_factory.mktemp("store") / "demo", progress=False)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Launch:
    return Launch(tmp_path_factory.mktemp("one"), 4, [0], 1, str(store), "displaced", "batch")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Launch:
    return Launch(tmp_path_factory.mktemp("two"), 2, [0, 1], 2, str(store), "displaced", "batch", "killed")


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Launch:
    return Launch(tmp_path_factory.mktemp("four"), 1, [0, 1, 2, 3], 4, str(store), "displaced", "failed")


@pytest.mark.processes
@pytest.mark.parametrize(("topology", "case"), [("two", "displaced"), ("two", "batch"), ("four", "displaced")])
def test_pictures_are_those_of_one_process(
    one: Launch, topology: str, case: str, request: pytest.FixtureRequest
) -> None:
    several: Launch = request.getfixturevalue(topology)
    expected, made = one.pictures(case), several.pictures(case)
    difference = float(np.abs(made - expected).max())
    print(f"largest difference {difference:.1e}, deviation {expected.std():.2f}")
    assert expected.std() > 0.05
    assert difference < ROUNDING
    for i in several.codes:
        assert np.array_equal(several.pictures(case, i), made)


@pytest.mark.processes
@pytest.mark.parametrize("topology", ["two", "four"])
def test_a_seed_of_chance_is_the_same_everywhere(topology: str, request: pytest.FixtureRequest) -> None:
    launch: Launch = request.getfixturevalue(topology)
    seeds = {json.loads((launch.folder / f"seed-{i}.json").read_text()) for i in launch.codes}
    assert len(seeds) == 1


@pytest.mark.processes
@pytest.mark.parametrize("topology", ["two", "four"])
def test_only_the_first_process_speaks(topology: str, request: pytest.FixtureRequest) -> None:
    launch: Launch = request.getfixturevalue(topology)
    for i in launch.codes:
        before = launch.said(i).partition("all was well so far")[0]
        words = [word for word in ("loading", "preparing", "denoising:") if word in before]
        assert words == ([] if i else ["loading", "preparing", "denoising:"]), before


@pytest.mark.processes
@pytest.mark.parametrize(("topology", "last"), [("two", -signal.SIGKILL), ("four", 1)])
def test_an_end_is_noticed_and_named(topology: str, last: int, request: pytest.FixtureRequest) -> None:
    """One process is killed, which only its silence tells; one fails, and says why."""
    launch: Launch = request.getfixturevalue(topology)
    assert all("all was well so far" in launch.said(i) for i in launch.codes)
    check_that_the_end_was_noticed(launch, last)


@pytest.mark.parametrize(("case", "last"), [("killed", -signal.SIGKILL), ("failed", 1)])
def test_an_end_is_noticed_where_nothing_runs(case: str, last: int, tmp_path: Path) -> None:
    check_that_the_end_was_noticed(Launch(tmp_path, 1, [0, 1, 2], 3, "-", "alone", case), last)


def check_that_the_end_was_noticed(launch: Launch, last: int) -> None:
    dead = max(launch.codes)
    assert launch.codes[dead] == last, launch.said(dead)
    why = (
        r"has given no sign of life for \d+ seconds" if last < 0 else "has ended: RuntimeError: a fault of this process"
    )
    for i in set(launch.codes) - {dead}:
        assert launch.codes[i] == 1, launch.said(i)
        assert re.search(f"error: process {dead} of {dead + 1} {why}", launch.said(i)), launch.said(i)
        assert "Check failure stack trace" not in launch.said(i)
        assert launch.ended[i] - launch.ended[dead] < (NOTICED if last < 0 else 15)


@pytest.mark.parametrize(("present", "count"), [([0, 2], 3), ([1], 2)])
def test_a_missing_process_ends_the_others(present: list[int], count: int, tmp_path: Path) -> None:
    """JAX does so, in a way that no Python code sees: this is what `initialize` documents."""
    launch = Launch(tmp_path, 1, present, count, "-")
    for i in present:
        assert launch.codes[i] == -signal.SIGABRT, launch.said(i)
        assert "Terminating process because the JAX distributed service detected fatal errors" in launch.said(i)
        assert "DEADLINE_EXCEEDED" in launch.said(i)
        assert "RegisterTask" in launch.said(i)
        assert launch.ended[i] < 3 + 40  # the timeout, JAX's own 5 s, and imports on a busy machine


def test_processes_agree_on_values_and_notice_where_they_differ(tmp_path: Path) -> None:
    launch = Launch(tmp_path, 2, [0, 1], 2, "-", "agreement")
    for i in (0, 1):
        assert launch.codes[i] == 0, launch.said(i)
        first, errors = json.loads((tmp_path / f"agreement-{i}.json").read_text())
        assert first == [2**64 - 1, 1, [True, False, True]]
        assert len(errors) == 3
        assert errors[0].startswith(
            "the 2 processes differ: seed is [1, 0] in process 0, [1, 1] in process 1; latents is something with"
        )
        assert errors[1].startswith("the 2 processes differ: x is 1 in process 0, absent in process 1. Start every")
        mine, other = ("loading", "compiling") if i else ("compiling", "loading")
        assert errors[2].startswith(f"process {1 - i} of 2 is {other} while process {i} is {mine}; every process must")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinator_address": "a:1"}, "num_processes and process_id is missing"),
        ({"process_id": 0, "num_processes": 2}, "coordinator_address is missing; give all of"),
        ({"coordinator_address": "10.0.0.1", "num_processes": 2, "process_id": 0}, "'10.0.0.1'; it must be a host"),
        ({"coordinator_address": "a:70000", "num_processes": 2, "process_id": 0}, "'a:70000'; it must be a host"),
        (
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 2},
            "process_id is 2; it must be a whole number, from 0 to 1",
        ),
        ({"coordinator_address": "a:1", "num_processes": 0, "process_id": 0}, "num_processes is 0"),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": -1}, "process_id is -1"),
        ({"timeout": 0}, "timeout is 0"),
        (
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 1, "timeout": 1},
            "devices are in use already",
        ),
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict[str, Any], message: str) -> None:
    assert jax.devices()
    with pytest.raises(DistrijaxError, match=re.escape(message)):
        processes.initialize(**arguments)


def test_alone_everything_is_the_first_process() -> None:
    assert processes.is_first()
    assert agreement.same_everywhere(2**64 - 1, "counting") == 2**64 - 1
    agreement.check_same_everywhere({"seed": 3})
