"""Several processes, each with some of the devices: finding each other, and what they must agree on.

Every process runs the same program with the same arguments; the mesh spans the devices of all.
"""

import contextlib
import itertools
import math
import re
import socket
import time
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distrijax.errors import DistrijaxError

HEARTBEAT = 100  # seconds, JAX's own
LONGEST = 3600  # seconds that one process may compile while the others wait; the dead are found by their heartbeat
_BARRIERS = itertools.count()  # a barrier's name serves once
_NAME, _GO = "distrijax", "go"
_GRACE = 2.0  # seconds for those who start at the same time to hear of a fault


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 300,
) -> None:
    """Join the other processes: `jax.distributed.initialize`, with errors that say what to do.

    To be called first, before anything asks JAX for its devices. Without arguments JAX finds the others by itself
    under Slurm, Open MPI, or Kubernetes (there with its package `kubernetes`), and gives each process one GPU under
    the first two: start as many tasks as there are GPUs. With arguments a process has all devices it can see.

    A process that does not come is an error in all others after `timeout` seconds, which names it; where JAX finds the
    others by itself, it ends the process then (as below), and names nobody. Of a process that dies later the others
    learn in one of two ways. Where a transfer breaks, as gloo's on CPUs do at once, the call under way raises
    `jax.errors.JaxRuntimeError`; the program, if it then ends, does so within `min(timeout, 100)` seconds. Where the
    transfer only never ends (NCCL, and processes still compiling), JAX ends the process from outside of Python that
    long after the last sign of life: SIGABRT, and on stderr "Terminating process because the JAX distributed service
    detected fatal errors". Nothing can catch that.

    Args:
        coordinator_address: host and port of process 0, which listens there: any free port that the others can reach.
        num_processes: of how many, on all machines.
        process_id: which of them this is, from 0.
        timeout: seconds to wait for the others at the start, and the most that a death may go unnoticed.

    Raises:
        DistrijaxError: arguments that cannot be used, devices that are in use already, or others who did not come.
    """
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    _check(given, timeout)
    if jax.distributed.is_initialized():
        raise DistrijaxError("the processes have been initialized already; do it once, at the start of the program")
    seconds = math.ceil(timeout)
    begin = partial(
        jax.distributed.initialize,
        initialization_timeout=seconds,
        heartbeat_timeout_seconds=min(seconds, HEARTBEAT),
        shutdown_timeout_seconds=min(seconds, HEARTBEAT),
        # What is given is meant: under Slurm JAX would look around all the same, and leave one GPU to the process.
        cluster_detection_method=None if coordinator_address is None else "deactivate",
    )
    if _too_late():  # before the others are told to go on
        raise DistrijaxError(
            "JAX's devices are in use already; initialize the processes first, before anything asks for devices"
        )
    if coordinator_address is not None and num_processes is not None and process_id is not None:
        _meet(coordinator_address, num_processes, process_id, timeout)
    try:
        begin(**given)  # type: ignore[arg-type]
    except (RuntimeError, ValueError, OSError) as error:
        raise DistrijaxError(_reason(str(error))) from error


def _check(given: dict[str, Any], timeout: float) -> None:
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        there = next(name for name in given if name not in missing)
        raise DistrijaxError(
            f"{there} is {given[there]!r}, but {' and '.join(missing)} is missing; give all of {', '.join(given)}, or "
            "none of them under Slurm, Open MPI or Kubernetes, where they are found"
        )
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise DistrijaxError(f"timeout is {timeout!r}; it must be a number of seconds above zero")
    if missing:
        return
    address, count, index = given.values()
    form = re.fullmatch(r"(?:.*[^:]|\[.*\]):(\d{1,5})", address) if isinstance(address, str) else None
    if form is None or not 0 < int(form[1]) < 2**16:
        raise DistrijaxError(f"coordinator_address is {address!r}; it must be a host and a port, such as 10.0.0.1:1234")
    for name, value, least in (("num_processes", count, 1), ("process_id", index, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise DistrijaxError(f"{name} is {value!r}; it must be a whole number, {least} or more")
    if index >= count:
        raise DistrijaxError(
            f"process_id is {index}, but num_processes is {count}; the processes are numbered from 0 to {count - 1}"
        )


def _too_late() -> bool:
    try:  # JAX looks at this first, and at the arguments next; it says so nowhere else
        jax.distributed.initialize("none:0", 1, 1, cluster_detection_method="deactivate")
    except RuntimeError:
        return True
    except ValueError:  # process 1 of 1
        return False
    raise AssertionError("JAX took process 1 of 1")


def _reason(message: str) -> str:
    """Of JAX's own error, in one line."""
    if "should be defined" in message or "must be defined" in message:
        return (
            "found neither Slurm nor Open MPI nor Kubernetes (with the package `kubernetes`) to say who the other "
            "processes are; give coordinator_address, num_processes and process_id"
        )
    return f"the processes did not come together: {(message.strip().splitlines() or ['no reason given'])[0]}"


def _meet(address: str, count: int, index: int, timeout: float) -> None:
    """Wait until all processes are there. JAX would do so too, but end the process if one is not, without a name.

    Process 0 listens where JAX will; the others say who they are, and are told to go on, or why not.
    """
    if count == 1:
        return
    deadline = time.monotonic() + timeout
    host, _, port = address.rpartition(":")
    if index == 0:
        answer = _listen(int(port), count, deadline)
    else:
        # A second more: if both were started at once, process 0 is to say who is missing.
        answer = _call((host.strip("[]"), int(port)), f"{_NAME} {index} {count}\n", deadline + 1)
    if answer != _GO:
        raise DistrijaxError(f"{answer} (timeout: {timeout:g} s)")


def _listen(port: int, count: int, deadline: float) -> str:
    """Process 0: hear all others, and tell them the answer."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    missing, heard, answer = set(range(1, count)), [], _GO
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port), family=family, dualstack_ipv6=dual))
        except OSError as error:
            return f"process 0 cannot listen at port {port}: {error.strerror}; choose another, the same for all"
        while missing:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(5)  # for one line; whoever does not send it is none of us
                with connection.makefile() as lines:
                    name, *numbers = lines.readline(100).split()
                index, of = map(int, numbers)
            except (OSError, ValueError):
                if time.monotonic() < deadline:
                    continue
                if answer == _GO:
                    absent = ", ".join(map(str, sorted(missing)))
                    answer = f"process {absent} of {count} did not come; start every one, with the same address"
                break
            if name != _NAME:
                continue
            heard.append(connection)
            if answer == _GO and of != count:
                answer = f"num_processes is {count} for process 0, but {of} for process {index}; it must be the same"
            elif answer == _GO and index not in missing:
                answer = f"process_id {index} was given to two processes; each needs its own, 0 to {count - 1}"
            missing.discard(index)
            if answer != _GO:  # those on their way are to hear it too, or they would call where no one listens any more
                deadline = min(deadline, time.monotonic() + _GRACE)
        for connection in heard:
            with contextlib.suppress(OSError):  # gone meanwhile
                connection.sendall(f"{answer}\n".encode())
    return answer


def _call(place: tuple[str, int], message: str, deadline: float) -> str:
    """The others: tell process 0, which may not have been started yet, and hear its answer."""
    where, reached = f"{place[0]}:{place[1]}", False
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError), socket.create_connection(place, timeout=left) as connection:
            connection.sendall(message.encode())
            reached = True
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            with connection.makefile() as lines:
                answer = lines.readline().strip()
            if answer:
                return answer
        time.sleep(0.2)
    if reached:
        return f"process 0 at {where} could be reached, but still waits for others; start them all"
    return f"process 0 could not be reached at {where}; start it too, and see that the port is open"


def is_first() -> bool:
    """This is the process that writes and speaks: the first, or the only one."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Go on when every process is here. Before the first transfer of a program: gloo gives that 30 seconds only.

    One process may find the program on disk where another compiles it for a minute. On CPUs just this happens: JAX
    (0.10.2) keeps compiled programs of the first process alone.

    Args:
        what: has been done, the same on all processes; for JAX's message if one of them dies meanwhile.
    """
    if jax.process_count() == 1:
        return
    from orbax.checkpoint.multihost import get_barrier_sync_fn  # takes a second to import

    barrier = get_barrier_sync_fn(processes=set(range(jax.process_count())))
    assert barrier is not None
    barrier(key=f"distrijax {next(_BARRIERS)}: {what}", timeout_ms=LONGEST * 1000)


def same_everywhere(value: int) -> int:
    """The first process's `value`, 0 to 2**64 - 1. All processes must call this."""
    return int(_of_all(value)[0])


def _of_all(value: int) -> np.ndarray:
    """Every process's `value`, in their order: uint64 [processes]."""
    if jax.process_count() == 1:
        return np.asarray([value], np.uint64)
    wait_for_all("a value for all")
    own = np.asarray([value], np.uint64).view(np.uint32)  # JAX has no 64 bits as a rule
    firsts = list({device.process_index: device for device in reversed(jax.devices())}.values())
    firsts.sort(key=lambda device: device.process_index)
    mesh = Mesh(np.array(firsts), "process")
    whole = jax.make_array_from_callback(
        (len(firsts), 2), NamedSharding(mesh, PartitionSpec("process")), lambda part: own[None]
    )
    gathered = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(whole)
    return np.ascontiguousarray(np.asarray(gathered)).view(np.uint64)[:, 0]
