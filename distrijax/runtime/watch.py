"""Watching the other processes: when one ends, the others say so and end too, instead of waiting for it forever."""

import itertools
import os
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

import jax

from distrijax.runtime import store

SILENCE = 25
"""Seconds without a sign of life after which a process counts as dead. JAX's own limit is 100, and it ends the others
with a C++ stack trace that does not name the process."""

_leaving = threading.Event()
_SIGNS, _ENDS = "distrijax/alive/", "distrijax/ended/"


def start_watching() -> None:
    """Show the others that this process is alive, watch them, and tell them of an exception that ends this process."""
    threading.Thread(target=_watch, daemon=True, name="watch").start()
    shown = sys.excepthook

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        shown(kind, error, trace)
        if issubclass(kind, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            time.sleep(SILENCE + 3)  # a transfer that failed: the watch is about to say which process has ended
        leave(f"{kind.__name__}: {error}")

    sys.excepthook = report


def leave(reason: str, code: int = 1) -> None:
    """Tell the other processes why this one ends, and end it with this exit code; do nothing if there is only one."""
    if (client := store.client()) is None:
        return
    _leaving.set()
    me, _ = store.process()
    with suppress(jax.errors.JaxRuntimeError):  # process 0 may have gone, and the store with it
        client.key_value_set(f"{_ENDS}{me}", reason.strip().splitlines()[0][:500], allow_overwrite=True)
    _end(me, code)


def _watch() -> None:
    client, (me, count) = store.client(), store.process()
    last = {str(i): ("", time.monotonic()) for i in range(count) if i != me}  # sign of life, and when it last changed
    for sign in itertools.count():
        try:
            client.key_value_set(f"{_SIGNS}{me}", str(sign), allow_overwrite=True)
            signs, ends = (
                {key.rpartition("/")[2]: value for key, value in client.key_value_dir_get(folder)}
                for folder in (_SIGNS, _ENDS)
            )
        except jax.errors.JaxRuntimeError:
            return  # the processes have parted, or process 0 was killed and JAX ends this one
        now, problem = time.monotonic(), None
        for process, (known, since) in last.items():
            if signs.get(process, "") != known:
                last[process] = signs[process], now
            elif now - since > SILENCE:
                problem = f"process {process} of {count} has given no sign of life for {SILENCE} seconds"
        for process in ends.keys() - {str(me)}:
            problem = f"process {process} of {count} has ended: {ends[process]}"
        if problem and not _leaving.is_set():
            print(f"distrijax: error: {problem}", file=sys.stderr, flush=True)
            _end(me)
        time.sleep(1)


def _end(me: int, code: int = 1) -> None:
    # Python's usual way out waits for the others. Process 0 goes last: JAX ends the others with it, before they have
    # read who was the first.
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(0 if me else 3)
    os._exit(code)
