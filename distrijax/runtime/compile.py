"""Programs that are compiled ahead of time, once per set of shapes, with messages, timings and a cache on disk."""

import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

import jax

from distrijax.runtime.processes import wait_for_all
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
    """A function that is compiled ahead of time, once for each set of shapes and choices.

    Programs may be prepared from several threads at once; each is compiled by one of them, and the others wait for it.

    Attributes:
        name: name in messages, such as "denoising".
        options: returns the compiler options for the arguments of a call.
        compile_seconds: seconds spent compiling so far.

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
        self.name, self.options, self.compile_seconds = name, options, 0.0
        self._report = report
        self._jit = jax.jit(function, static_argnames=tuple(static), donate_argnames=tuple(donated))
        self._lock = threading.Lock()
        self._compiled: dict[Hashable, Future[jax.stages.Compiled]] = {}
        self._called: dict[Hashable, jax.stages.Compiled] = {}

    def lower(self, *args: object, **static: Hashable) -> jax.stages.Lowered:
        """Trace the program for these shapes, without compiling it."""
        return self._jit.lower(*args, **static)

    def prepare(self, *args: object, **static: Hashable) -> jax.stages.Compiled:
        """Compile the program for these shapes, unless it is compiled already.

        Args:
            args: arrays, or `jax.ShapeDtypeStruct`s with the shardings that the arrays will have.
        """
        return self._compile_once(_key(args, static), args, static)

    def __call__(self, *args: Arguments.args, **static: Arguments.kwargs) -> Result:
        # Runs before every dispatch: with 1,680 arrays, 0.2 ms to find the program and 0.35 ms for JAX to call it.
        key = _key(args, static)
        program = self._called.get(key)
        if program is None:
            program = self._compile_once(key, args, static)
            if any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in jax.tree.leaves(args)):
                wait_for_all(f"compiled {self.name}")
            self._called[key] = program
        result: Result = program(*args)
        return result

    def _compile_once(
        self, key: Hashable, args: Sequence[object], static: Mapping[str, Hashable]
    ) -> jax.stages.Compiled:
        with self._lock:
            first = key not in self._compiled
            future = self._compiled.setdefault(key, Future())
        if first:
            try:
                future.set_result(self._compile(args, static))
            except BaseException as error:  # threads that wait for it must get it too, Ctrl-C included
                del self._compiled[key]
                future.set_exception(error)
        return future.result()

    def _compile(self, args: Sequence[object], static: Mapping[str, Hashable]) -> jax.stages.Compiled:
        self._report(f"compiling {self.name} ...")
        start = time.perf_counter()
        compiled = compile_with(self.lower(*args, **static), self.options(*args, **static))
        seconds = time.perf_counter() - start
        with self._lock:
            self.compile_seconds += seconds
        self._report(f"compiled {self.name} in {seconds:.1f} s")
        return compiled


def _key(args: Sequence[object], static: Mapping[str, Hashable]) -> Hashable:
    """Return the key of a compiled program: the structure, shapes and dtypes of the arguments, and the choices.

    Shardings are left out, since the choices (`parallel`) decide them and reading 1,680 of them would double the time.
    JAX rejects arguments whose shardings differ from those that a program was compiled for.
    """
    leaves, structure = jax.tree.flatten(args)
    # `jax.typeof` returns the same as `.aval`, but takes twenty times as long.
    types = [getattr(x, "aval", None) or jax.typeof(x) for x in leaves]
    return structure, tuple(types), tuple(sorted(static.items()))


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
