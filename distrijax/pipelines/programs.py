"""The compiled programs of a pipeline, which pipelines made from it share."""

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

from jax import Array

from distrijax.adapters.merge import Merge
from distrijax.models.text_encoder import Added, TextEncoder
from distrijax.nn.module import Weights
from distrijax.runtime.cache import repair_cache
from distrijax.runtime.compile import Program, Report, keep_compiled_programs
from distrijax.sampling import programs
from distrijax.text.prompt import encode_ids


class Programs:
    """One `Program` per stage, and the time that they took.

    Attributes:
        seconds: seconds of all calls so far, by stage; tracing and waiting for the compiler are counted separately.
    """

    def __init__(self, report: Report):
        def program(name: str, function: Callable, *static: str) -> Program:
            return Program(name, function, static=static, report=report)

        keep_compiled_programs()
        repair_cache()
        self.encode_prompt = program("text encoding", _encode_ids, "clip_skip")
        self.encode_image = program("image encoding", programs.encode, "parallel")
        self.condition = program("conditioning", programs.condition, "parallel")
        self.denoise = {
            name: programs.denoising(f"denoising, {name} steps", report) for name in ("synchronous", "displaced")
        }
        static = "parallel", "layout", "scheduler", "phase", "after_step"
        self.first_pieces = program("first pieces", programs.first_pieces, *static)
        self.end_guidance = program("end of guidance", programs.end_guidance, "parallel")
        self.deal = program("change of U-Nets", programs.deal, "parallel", "layout")
        self.crop = program("end of denoising", programs.crop, "parallel", "height")
        self.decode = program("decoding", programs.decode, "parallel", "height")
        self.merge = Merge()
        self.known = set[Hashable]()  # kinds of calls whose programs are compiled
        self.seconds = dict.fromkeys(("compiling", "merging", "encoding", "denoising", "decoding"), 0.0)

    @property
    def all(self) -> tuple[Program, ...]:
        """Every program, in the order of a call."""
        before = self.encode_prompt, self.encode_image, self.condition, self.first_pieces
        denoise = self.denoise.values()
        return *self.merge.all, *before, *denoise, self.end_guidance, self.deal, self.crop, self.decode

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block to that of `stage`, except for compilation, which adds to "compiling"."""
        start, waited = time.perf_counter(), sum(program.waited for program in self.all)
        yield
        self.seconds["compiling"] = sum(program.waited for program in self.all)
        self.seconds[stage] += time.perf_counter() - start - (self.seconds["compiling"] - waited)


def _encode_ids(
    encoders: Sequence[Weights[TextEncoder]],
    ids: tuple[Array, ...],
    added: tuple[Added, ...] | None,
    masks: tuple[Array, ...] | None,
    *,
    clip_skip: int,
) -> tuple[Array, Array]:
    return encode_ids(tuple(encoder.module() for encoder in encoders), ids, added, masks, clip_skip=clip_skip)
