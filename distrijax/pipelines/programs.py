"""The compiled programs of a pipeline, which pipelines made from it share."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from distrijax.runtime.cache import repair_cache
from distrijax.runtime.compile import Program, Report, keep_compiled_programs
from distrijax.sampling import programs
from distrijax.text.prompt import encode_ids


class Programs:
    """One `Program` per stage, and the time that they took.

    Attributes:
        seconds: seconds of all calls so far, by stage; compilation is counted separately.
    """

    def __init__(self, report: Report):
        keep_compiled_programs()
        repair_cache()
        self.encode_prompt = Program("text encoding", encode_ids, static=["clip_skip"], report=report)
        self.encode_image = Program("image encoding", programs.encode, static=["parallel"], report=report)
        self.condition = Program("conditioning", programs.condition, static=["parallel"], report=report)
        self.denoise = {
            name: programs.denoising(f"denoising, {name} steps", report) for name in ("synchronous", "displaced")
        }
        self.crop = Program("end of denoising", programs.crop, static=["parallel", "height"], report=report)
        self.decode = Program("decoding", programs.decode, static=["parallel", "height"], report=report)
        self.seconds = dict.fromkeys(("compiling", "encoding", "denoising", "decoding"), 0.0)

    @property
    def all(self) -> tuple[Program, ...]:
        """Every program, in the order of a call."""
        before = self.encode_prompt, self.encode_image, self.condition
        return *before, *self.denoise.values(), self.crop, self.decode

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block to that of `stage`, except for compilation, which adds to "compiling"."""
        start, compiled = time.perf_counter(), sum(program.compile_seconds for program in self.all)
        yield
        self.seconds["compiling"] = sum(program.compile_seconds for program in self.all)
        self.seconds[stage] += time.perf_counter() - start - (self.seconds["compiling"] - compiled)
