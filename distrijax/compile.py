"""Compiled programs: ahead of time, once for each set of shapes, announced and timed, kept on disk."""

import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from distrijax.errors import DistrijaxError
from distrijax.parallel.cluster import wait_for_all
from distrijax.profiles import Profiles

Report = Callable[[str], None]


def keep_compiled_programs(folder: str | Path | None = None) -> None:
    """Keep compiled programs on disk, so that the next process with the same shapes starts at once.

    The folder is JAX's own persistent compilation cache: what the user has set (`jax_compilation_cache_dir`, or the
    environment variable JAX_COMPILATION_CACHE_DIR, an empty one to keep nothing) is left as it is; else `folder`, by
    default `distrijax/programs` in the user's cache folder.
    """
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if chosen is not None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder or _user_cache() / "distrijax" / "programs"))


def kept_profiles(*, measure: bool = False) -> Profiles:
    """Measured costs of kernels, beside the compiled programs: call `keep_compiled_programs` first."""
    if measure and jax.default_backend() != "gpu":
        raise DistrijaxError(f"profile_guided measures kernels of GPUs; on {jax.default_backend()} leave it out")
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return Profiles(Path(folder) / "profiles" if folder else None, measure=measure)


def _user_cache() -> Path:
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


class Program:
    """A function compiled ahead of time for each set of shapes that it is called with.

    Args:
        name: what is announced, e.g. "denoising".
        function: a pure function of pytrees of arrays; weights are among its arguments, never constants.
        static: names of its arguments that are not arrays but hashable choices; they are given by name.
        donated: names of its arguments that are used up by a call, so that results take their place in memory.
        options: makes the compiler's options, of the arguments and `profile`, measured costs of kernels or None.
        profiles: where those are found; by default there are none.
        report: takes the announcements.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        static: Sequence[str] = (),
        donated: Sequence[str] = (),
        options: Callable[..., Mapping[str, Any]] = lambda *args, **static: {},
        profiles: Profiles | None = None,
        report: Report = lambda message: None,
    ):
        self.name, self.options, self._report = name, options, report
        self._profiles = profiles or Profiles(None)
        self._jit = jax.jit(function, static_argnames=tuple(static), donate_argnames=tuple(donated))
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self.compile_seconds = 0.0

    def lower(self, *args: Any, **static: Any) -> Any:
        """The program for these shapes before XLA has seen it."""
        return self._jit.lower(*args, **static)

    def prepare(self, *args: Any, **static: Any) -> Callable[..., Any]:
        """The program for these shapes, to be called with arguments alone: compiled now if it has not been yet."""
        leaves, structure = jax.tree.flatten(args)
        key = structure, tuple(jax.typeof(x) for x in leaves), tuple(sorted(static.items()))
        if key not in self._compiled:
            self._report(f"compiling {self.name} ...")
            start = time.perf_counter()
            named = self._profiles.key(*args, **static)
            options = self.options(*args, profile=self._profiles.read(named), **static)
            program = compile_with(self.lower(*args, **static), options)
            self._compiled[key] = partial(self._profiles.call, named, program)
            seconds = time.perf_counter() - start
            self.compile_seconds += seconds
            self._report(f"compiled {self.name} in {seconds:.1f} s")
            if any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in leaves):
                wait_for_all(f"compiled {self.name}")
        return self._compiled[key]

    def __call__(self, *args: Any, **static: Any) -> Any:
        return self.prepare(*args, **static)(*args)


def compile_with(lowered: Any, options: Mapping[str, Any]) -> Any:
    """Compile with XLA's options by name. Those of which this JAX does not know the name or the value are
    left out with a warning: the program is the same without them, only slower."""
    options = dict(options)
    while True:
        try:
            return lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            found = re.search(r"(?:No such compile option: '|While setting option )(\w+)", str(error))
            if found is None or found[1] not in options:
                raise
            del options[found[1]]
            warnings.warn(
                f"jax {jax.__version__} does not take the compiler option {found[1]}: transfers may hide less well",
                stacklevel=2,
            )
