"""Several processes, each with some of the devices: how they join, and what they must agree on.

Every process runs the same program with the same arguments; the mesh spans the devices of all of them.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Mapping

import jax
import numpy as np

from distrijax.checks import finite_number, whole_number
from distrijax.errors import DistrijaxError

HEARTBEAT = 100
"""Seconds without a sign of life after which a process counts as dead; JAX's default."""

LONGEST_COMPILATION = 3600
"""Seconds that one process may compile while the others wait. Its heartbeat shows sooner whether it is alive."""

_BARRIERS = itertools.count()  # the name of a barrier can be used only once


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 300,
) -> None:
    """Join the other processes: `jax.distributed.initialize`, with errors that say what to do.

    Call it first, before anything asks JAX for its devices. Without arguments JAX finds the other processes itself
    under Slurm, Open MPI or Kubernetes (there it needs the package `kubernetes`). Under the first two it gives each
    process one GPU, so start as many tasks as there are GPUs. With arguments, a process has all the devices it can see.

    If a process is missing after `timeout` seconds, JAX ends all others some seconds later. It does so from outside
    Python, where nothing can catch it: SIGABRT (exit code 134 in a shell), and on stderr "Terminating process because
    the JAX distributed service detected fatal errors", with DEADLINE_EXCEEDED and RegisterTask. It does not say which
    process is missing. A wrong address, a port that another program uses, two processes with the same id and different
    values of `num_processes` have the same effect.

    If a process dies later, the others find out in one of two ways. If a transfer fails, as gloo's on CPUs do at once,
    the running call raises `jax.errors.JaxRuntimeError`. If a transfer merely never ends (NCCL, or while a
    process is still compiling), JAX ends the process as above, `min(timeout, 100)` seconds after the last sign of life.

    Args:
        coordinator_address: host and port of process 0, which listens there: any free port that the others can reach.
        process_id: number of this process, from 0.
        timeout: seconds to wait for the other processes at the start, at least 1.

    Raises:
        DistrijaxError: an argument cannot be used, JAX's devices are already in use, or no cluster was detected.
    """
    arguments = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in arguments.items() if value is None]
    if 0 < len(missing) < len(arguments):
        raise DistrijaxError(
            f"{' and '.join(missing)} is missing; give all of {', '.join(arguments)}, or none of them under Slurm, "
            "Open MPI or Kubernetes, where JAX finds them"
        )
    if not missing:
        _check_address(coordinator_address)
        num_processes = whole_number("num_processes", num_processes, 1)
        process_id = whole_number("process_id", process_id, 0, num_processes - 1)
    seconds = math.ceil(finite_number("timeout", timeout, 1))
    if jax.distributed.is_initialized():
        raise DistrijaxError("the processes have joined already; initialize once, at the start of the program")
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=min(seconds, HEARTBEAT),
            shutdown_timeout_seconds=min(seconds, HEARTBEAT),
            # Otherwise JAX would detect Slurm in spite of the arguments, and leave the process only one GPU.
            cluster_detection_method=None if missing else "deactivate",
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise DistrijaxError(_explain(str(error))) from error


def _check_address(address: object) -> None:
    match = re.fullmatch(r"(?:.*[^:]|\[.*\]):(\d{1,5})", address) if isinstance(address, str) else None
    if match is None or not 0 < int(match[1]) < 2**16:
        raise DistrijaxError(f"coordinator_address is {address!r}; it must be a host and a port, such as 10.0.0.1:1234")


def _explain(message: str) -> str:
    """Return advice about an error of `jax.distributed.initialize`."""
    if "must be called before" in message:
        return "JAX's devices are in use already; initialize the processes first, before anything asks for devices"
    if "should be defined" in message or "must be defined" in message:
        return (
            "JAX found neither Slurm nor Open MPI nor Kubernetes (which needs the package `kubernetes`); give "
            "coordinator_address, num_processes and process_id"
        )
    return f"the processes could not join: {(message.strip().splitlines() or ['JAX gives no reason'])[0]}"


def is_first() -> bool:
    """Return whether this is the process that writes files and shows progress: the first, or the only one."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Return when every process has called this. All processes must call it, in the same order.

    It is needed before the first transfer of a program: gloo times out after 30 seconds, while one process may find on
    disk a program that another compiles for a minute. On CPUs that is usual: JAX (0.10.2) caches the compiled programs
    of the first process only.

    Args:
        what: what this process has finished; JAX's message shows it if another process dies meanwhile.
    """
    if jax.process_count() == 1:
        return
    from orbax.checkpoint.multihost import get_barrier_sync_fn  # takes a second to import

    barrier = get_barrier_sync_fn(processes=set(range(jax.process_count())))
    assert barrier is not None
    barrier(key=f"distrijax {next(_BARRIERS)}: {what}", timeout_ms=LONGEST_COMPILATION * 1000)


def same_everywhere(value: int) -> int:
    """Return the first process's `value`, from 0 to 2**64 - 1. All processes must call this."""
    return int(_gather(np.asarray([value], np.uint64))[0, 0])


def check_same_everywhere(values: Mapping[str, object]) -> None:
    """Check that every process has the same values. All processes must call this, with the same names.

    With different seeds or prompts, the processes would mix parts of different pictures; with different numbers of
    steps or sizes, they would wait for each other forever.

    Args:
        values: by name, what must agree: anything that its `repr` identifies, and arrays, alone or in containers.

    Raises:
        DistrijaxError: a value differs; all processes raise it.
    """
    if jax.process_count() == 1:
        return
    digests = _gather(np.asarray([_digest(value) for value in values.values()], np.uint64))
    different = [name for name, column in zip(values, digests.T, strict=True) if len(set(column.tolist())) > 1]
    if different:
        raise DistrijaxError(
            f"{', '.join(different)}: not the same in all {len(digests)} processes; start every process with the same "
            "arguments"
        )


def _digest(value: object) -> int:
    leaves, structure = jax.tree.flatten(value)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        array = np.asarray(leaf) if isinstance(leaf, np.ndarray | jax.Array) else None
        digest.update(repr(leaf if array is None else (array.shape, array.dtype.name, array.tobytes())).encode())
    return int.from_bytes(digest.digest()[:8])


def _gather(values: np.ndarray) -> np.ndarray:
    """Return the `values` (uint64 [N]) of every process, in the order of the processes: uint64 [processes, N]."""
    if jax.process_count() == 1:
        return values[None]
    from jax.experimental import multihost_utils

    wait_for_all("a value for all")
    words = values.view(np.uint32)  # JAX has no 64-bit integers unless jax_enable_x64 is set
    return np.ascontiguousarray(multihost_utils.process_allgather(words)).view(np.uint64)
