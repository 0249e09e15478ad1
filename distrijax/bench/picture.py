"""Whole pictures: prompt in, pixels out, and the parts of the time until the first."""

import time
from typing import Any

import jax

from distrijax.bench import weights
from distrijax.bench.step import Case
from distrijax.bench.timing import Times
from distrijax.parallel.mesh import Parallel
from distrijax.runtime.compile import Report

PROMPT = "a red circle above a blue square"
PARTS = ("encoding", "denoising", "decoding")


def pictures(
    case: Case, parallel: Parallel, *, steps: int, runs: int, report: Report
) -> tuple[dict[str, float], dict[str, Times]]:
    """Seconds of each part until the first picture, and those of the next ones, whole and by part.

    Args:
        steps: denoising steps of a picture.
        runs: pictures after the first.
    """
    case.rows(parallel)
    report("loading")
    pipe, loading = weights.pipeline(case.model, parallel, case.dtype)
    pipe.set_progress_bar_config(disable=True)
    cached = _Cached()
    spent: list[dict[str, float]] = []
    for i in range(1 + runs):
        report(f"picture {i} of {runs}" if i else "first picture")
        before, start = dict(pipe.seconds), time.perf_counter()
        pipe(
            [PROMPT] * case.pictures,
            height=case.height,
            width=case.width,
            num_inference_steps=steps,
            guidance_scale=5.0 if case.guided else 1.0,
            seed=list(range(case.pictures)),
        )
        spent.append({"whole": time.perf_counter() - start})
        spent[-1] |= {part: pipe.seconds[part] - before[part] for part in ("compiling", *PARTS)}
    first = (
        {"loading": loading}
        | spent[0]
        | {"programs": float(cached.asked), "programs from the cache": float(cached.hits)}
    )
    first["whole"] += loading
    return first, {part: Times(tuple(s[part] for s in spent[1:])) for part in ("whole", *PARTS)}


class _Cached:
    """Counts the programs that are looked for in JAX's cache on disk, and those found there."""

    def __init__(self) -> None:
        self.asked = self.hits = 0
        jax.monitoring.register_event_listener(self._listen)

    def _listen(self, event: str, **_: Any) -> None:
        self.asked += event == "/jax/compilation_cache/compile_requests_use_cache"
        self.hits += event == "/jax/compilation_cache/cache_hits"
