"""Several processes, each with some of the devices: how they join.

Every process runs the same program with the same arguments; the mesh spans the devices of all of them.
"""

import math
import re

import jax

from distrijax.checks import finite_number, whole_number
from distrijax.errors import DistrijaxError
from distrijax.runtime.watch import start_watching


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

    If a process ends later, by an error or without a word, the others end too, with exit code 1 and a line on stderr
    that names it: at once if it could still say why, otherwise after 25 seconds. Only if process 0 is killed
    from outside does JAX end the others, as above.

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
            shutdown_timeout_seconds=100,
            # Otherwise JAX would detect Slurm in spite of the arguments, and leave the process only one GPU.
            cluster_detection_method=None if missing else "deactivate",
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise DistrijaxError(_explain(str(error))) from error
    start_watching()


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
