"""What several processes must agree on: they exchange it through the store they share, before any transfer can hang."""

import hashlib
import itertools
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from distrijax.errors import DistrijaxError
from distrijax.runtime import store

LONGEST_WAIT = 3600
"""Seconds that a process may load or compile while the others wait. If it dies, they are told sooner; see `watch`."""

_MEETINGS = itertools.count()  # a key of the store can be used only once


def wait_for_all(what: str) -> None:
    """Return when every process has called this. All processes must call it, in the same order.

    It is needed before the first transfer of a program: gloo times out after 30 seconds, while one process may find on
    disk a program that another compiles for a minute. On CPUs that is usual: JAX (0.10.2) caches the compiled programs
    of the first process only.

    Args:
        what: what this process has finished, for the error if another has not.
    """
    _gather(what, "")


def same_everywhere(value: int, what: str) -> int:
    """Return the first process's `value`. All processes must call this.

    Args:
        what: what the value is for, as in "drawing a seed", for the error if another process does something else.
    """
    return int(_gather(what, str(int(value)))[0])


def flags_everywhere(flags: Sequence[bool], what: str) -> list[bool]:
    """Return the first process's `flags`, of which it may have another number. All processes must call this."""
    return [flag == "1" for flag in _gather(what, "".join(str(int(flag)) for flag in flags))[0]]


def check_same_everywhere(values: Mapping[str, object]) -> None:
    """Check that every process has the same values. All processes must call this.

    With different seeds or prompts, the processes would mix parts of different pictures; with different numbers of
    steps or sizes, they would wait for each other forever.

    Args:
        values: by name, what must agree: anything that its `repr` identifies, and arrays, alone or in containers.

    Raises:
        DistrijaxError: a value differs; all processes raise it.
    """
    if store.client() is None:
        return
    summaries = {name: _summary(value) for name, value in values.items()}
    everywhere = [json.loads(text) for text in _gather("comparing arguments", json.dumps(summaries))]
    names = dict.fromkeys(name for one in everywhere for name in one)
    if differences := [
        f"{name} is {_listed([one.get(name, 'absent') for one in everywhere])}"
        for name in names
        if any(one.get(name) != everywhere[0].get(name) for one in everywhere)
    ]:
        raise DistrijaxError(
            f"the {len(everywhere)} processes differ: {'; '.join(differences)}. Start every process with the same "
            "arguments, files and versions"
        )


def _summary(value: object) -> str:
    """Return a value's text if it is short, otherwise a digest of it."""
    leaves, structure = jax.tree.flatten(value)
    if not any(isinstance(leaf, np.ndarray | jax.Array) for leaf in leaves) and len(repr(value)) <= 80:
        return repr(value)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        text = repr(leaf)
        if isinstance(leaf, np.ndarray | jax.Array):
            array = np.asarray(leaf)
            data: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            text = f"{array.shape} {array.dtype} {zlib.crc32(data)}"  # reads 2.5 GB/s, and weights are gigabytes
        digest.update(text.encode())
    return f"something with the digest {digest.hexdigest()[:16]}"


def _listed(values: list[str]) -> str:
    by_value: dict[str, list[str]] = {}
    for process, value in enumerate(values):
        by_value.setdefault(value, []).append(str(process))
    return ", ".join(f"{value} in process {' and '.join(them[:4])}" for value, them in by_value.items())


def _gather(what: str, value: str) -> list[str]:
    """Return the `value` of every process, in the order of the processes."""
    client, meeting = store.client(), next(_MEETINGS)
    if client is None:
        return [value]
    me, count = store.process()
    client.key_value_set(f"distrijax/meeting/{meeting}/{me}", json.dumps([what, value]))
    gathered = []
    for process in range(count):
        try:
            text = client.blocking_key_value_get(f"distrijax/meeting/{meeting}/{process}", LONGEST_WAIT * 1000)
        except jax.errors.JaxRuntimeError as error:
            raise DistrijaxError(f"{what}: process {process} of {count} did not come ({error})") from error
        its, theirs = json.loads(text)
        if its != what:
            raise DistrijaxError(
                f"process {process} of {count} is {its} while process {me} is {what}; every process must make the same "
                "calls in the same order"
            )
        gathered.append(theirs)
    return gathered
