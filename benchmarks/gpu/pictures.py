"""Whole pictures, and how long a new process takes to its first."""

import os
from collections import Counter
from pathlib import Path

import jax

from distrijax import Parallel
from distrijax.tools.bench.measure import measure_pictures
from distrijax.tools.bench.timing import RunSettings
from gpu.results import Json
from gpu.setup import Setup


def first(setup: Setup, *, again: bool) -> Json:
    """Return the seconds to a process's first picture by part, of pictures after it, and what the cache on disk did.

    Args:
        again: the programs were compiled by an earlier process and kept on disk.
    """
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "pictures"
    if again and not folder.exists():
        raise RuntimeError("no process of this run has made a first picture before; run that stage too")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    events = Counter[str]()
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
    count, runs = (6, 1) if setup.tiny else (30, 3)
    report = measure_pictures(setup.workload(1024), Parallel(), RunSettings(runs), count=count)
    prefix = "to the first picture, "
    return {
        "steps": count,
        # Programs that compile within JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS are never kept, so never found.
        "programs": {
            "needed": events["compile_requests_use_cache"],
            "found": events["cache_hits"],
            "on disk": len(list(folder.glob("*-cache"))),
        },
        "to_first_picture": {name.removeprefix(prefix): round(x, 2) for name, x in report.facts.items()},
        "picture": {line.name: round(line.median, 4) for line in report.measurements},
    }
