"""Programs that are compiled ahead of time, once per set of shapes, with messages, timings and a cache on disk."""

import dataclasses
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

import jax

from distrijax.nn.module import Weights, type_of
from distrijax.runtime.agreement import wait_for_all
from distrijax.runtime.xla_options import Options

Report = Callable[[str], None]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def keep_compiled_programs(folder: str | Path | None = None) -> None:
    """Keep compiled programs on disk, so that the next process with the same shapes starts at once.

    This is JAX's persistent compilation cache. A cache that the user has chosen (`jax_compilation_cache_dir`, or the
    environment variable JAX_COMPILATION_CACHE_DIR, where an empty value means no cache) is left alone.

    Args:
        folder: where to keep the programs; by default `distrijax/programs` in the user's cache folder.
    """
    cache = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if cache is not None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder or _user_cache() / "distrijax" / "programs"))


def _user_cache() -> Path:
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


class Program(Generic[Arguments, Result]):
    """A function that is compiled ahead of time, once for each set of shapes and choices, in a thread of its own.

    Attributes:
        name: name in messages, such as "denoising".
        options: returns the compiler options for the arguments of a call.
        waited: seconds that calls have spent on tracing, and on waiting for the compiler.

    Args:
        function: a pure function of pytrees of arrays. Weights are arguments, never constants. Pass them as a flat
            tuple: JAX walks the arguments at each call, and walking a module takes longer than a step on eight GPUs.
        static: names of the arguments that are hashable choices, not arrays; calls pass them by name. They are hashed
            at each call: for a full-size U-Net, `jax.tree.structure` takes 0.04 ms and `nnx.GraphDef` 17.
        donated: names of the arguments whose memory the results reuse.
        report: called with each message.
    """

    def __init__(
        self,
        name: str,
        function: Callable[Arguments, Result],
        *,
        static: Sequence[str] = (),
        donated: Sequence[str] = (),
        options: Callable[..., Options] = lambda *args, **static: {},
        report: Report = lambda message: None,
    ):
        self.name, self.options, self.waited = name, options, 0.0
        self._report = report
        self._jit = jax.jit(function, static_argnames=tuple(static), donate_argnames=tuple(donated))
        self._lock = threading.Lock()
        self._prepared: dict[Hashable, Prepared[Result]] = {}
        self._called: dict[Hashable, jax.stages.Compiled] = {}

    @property
    def compiled(self) -> int:
        """Number of programs that have been compiled so far, one for each set of shapes and choices."""
        return len(self._prepared)

    def trace(self, *args: object, **static: Hashable) -> jax.stages.Traced:
        """Trace the program for these shapes, without compiling it."""
        return self._jit.trace(*args, **static)

    def prepare(self, *args: object, **static: Hashable) -> "Prepared[Result]":
        """Trace the program for these shapes and begin to compile it, unless that was done before.

        Args:
            args: arrays, or `jax.ShapeDtypeStruct`s with the shardings that the arrays will have.
        """
        return self._prepare(key_of(args, static), args, static)

    def __call__(self, *args: Arguments.args, **static: Arguments.kwargs) -> Result:
        key = key_of(args, static)
        program = self._called.get(key)
        if program is None:
            program = self._prepare(key, args, static).wait()
            if any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in jax.tree.leaves(args)):
                wait_for_all(f"compiling {self.name}")
            self._called[key] = program
        result: Result = program(*args)
        return result

    def _prepare(self, key: Hashable, args: Sequence[object], static: Mapping[str, Hashable]) -> "Prepared[Result]":
        with self._lock:  # while it is traced, other threads wait for the same program
            known = self._prepared.get(key)
            if known is None or (known.compiled.done() and known.compiled.exception()):
                start = time.perf_counter()
                traced = self._jit.trace(*args, **static)
                options = self.options(*args, **static)
                self.waited += time.perf_counter() - start
                known = Prepared(self, traced.out_info, _COMPILERS.submit(self._compile, traced, options))
                self._prepared[key] = known
            return known

    def _compile(self, traced: jax.stages.Traced, options: Options) -> jax.stages.Compiled:
        self._report(f"preparing {self.name} ...")
        start = time.perf_counter()
        _cache.hit = False
        compiled = compile_with(traced.lower(), options)
        verb = "loaded" if _cache.hit else "compiled"
        self._report(f"{verb} {self.name} in {time.perf_counter() - start:.1f} s")
        return compiled


@dataclasses.dataclass(frozen=True)
class Prepared(Generic[Result]):
    """A program for one set of shapes.

    Attributes:
        results: shapes of its results.
        compiled: the program itself, which another thread is compiling.
    """

    program: Program[..., Result]
    results: Result
    compiled: Future[jax.stages.Compiled]

    def wait(self) -> jax.stages.Compiled:
        """Return the compiled program, or raise the compiler's error."""
        if not self.compiled.done():
            start = time.perf_counter()
            wait([self.compiled])
            self.program.waited += time.perf_counter() - start
        return self.compiled.result()


# All programs of a pipeline at once: processes that share devices may wait for each other's compilers.
_COMPILERS = ThreadPoolExecutor(16, thread_name_prefix="compiler")
_cache = threading.local()  # whether JAX found this thread's program in its cache


def _notice(event: str, **_: object) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _cache.hit = True


jax.monitoring.register_event_listener(_notice)


def key_of(args: Sequence[object], static: Mapping[str, Hashable]) -> Hashable:
    """Return the key of a compiled program: the structure, shapes and dtypes of the arguments, and the choices.

    Shardings are left out, since the choices (`parallel`) decide them and reading 1,680 of them would double the time.
    JAX rejects arguments whose shardings differ from those that a program was compiled for.
    """
    leaves, structure = jax.tree.flatten(args, is_leaf=lambda x: isinstance(x, Weights))
    kinds = [x.kind if isinstance(x, Weights) else type_of(x) for x in leaves]
    return structure, tuple(kinds), tuple(sorted(static.items()))


def compile_with(lowered: jax.stages.Lowered, options: Options) -> jax.stages.Compiled:
    """Compile a program with XLA options.

    An option whose name or value this version of JAX does not know is dropped with a warning: the program computes the
    same results without it, only more slowly.
    """
    options = dict(options)
    while True:
        try:
            return lowered.compile(compiler_options=options)  # type: ignore[arg-type]  # JAX takes numbers and bytes too
        except jax.errors.JaxRuntimeError as error:
            match = re.search(r"(?:No such compile option: '|While setting option )(\w+)", str(error))
            if match is None or match[1] not in options:
                raise
            del options[match[1]]
            warnings.warn(
                f"jax {jax.__version__} does not support the compiler option {match[1]}: transfers may overlap less",
                stacklevel=2,
            )
