"""The cache of compiled programs on disk: what is broken is replaced, what cannot be written is said once."""

import resource
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src import compilation_cache

from distrijax.runtime import cache

pytestmark = pytest.mark.fast


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A cache of its own, which JAX opens anew."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    cache.repair_cache()
    cache.warn_once.cache_clear()
    for name, value in zip(names, (str(tmp_path / "programs"), 0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path / "programs"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_anew() -> list[str]:
    """Compile two small programs as a new process would; return the warnings."""
    jax.clear_caches()
    compilation_cache.reset_cache()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for function in (np.sin, np.cos):
            # A constant makes the program this test's own.
            assert jax.jit(lambda x, f=function: jax.numpy.asarray(x) * f(0.5)).lower(np.float32(1)).compile()(1.0) > 0
    return [str(warning.message) for warning in caught]


def entries(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*-cache")}


@pytest.mark.parametrize("damaged", [b"", np.random.RandomState(0).bytes(500)], ids=["empty", "random"])
def test_a_broken_entry_is_replaced_and_said_once(folder: Path, damaged: bytes) -> None:
    assert compile_anew() == []
    whole = entries(folder)
    assert len(whole) >= 2
    for name in whole:
        (folder / name).write_bytes(damaged)
    (message,) = compile_anew()
    assert message == f"compiled programs in {folder} are damaged; they are compiled again and replaced"
    assert entries(folder).keys() == whole.keys()
    assert min(map(len, entries(folder).values())) > 500
    assert compile_anew() == []


def test_a_truncated_entry_is_replaced(folder: Path) -> None:
    compile_anew()
    for name, content in entries(folder).items():
        (folder / name).write_bytes(content[:-100])
    assert len(compile_anew()) == 1
    assert compile_anew() == []


def test_an_entry_that_is_whole_but_no_program_is_replaced(folder: Path) -> None:
    """As one of another machine may be: JAX warns itself, and compiles."""
    compile_anew()
    for name in entries(folder):
        (folder / name).write_bytes(compilation_cache.compress_executable(bytes(600)))
    assert all("Error reading persistent compilation cache entry" in message for message in compile_anew())
    assert compile_anew() == []


def test_a_cache_that_cannot_be_written_is_said_once(folder: Path) -> None:
    """Neither files nor the folder; a limit of a file's size ends in the middle of it, as a full disk does."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, most))
    try:
        (message,) = compile_anew()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert f"cannot be kept in {folder} (File too large), so each start compiles again" in message
    assert entries(folder) == {}  # not even empty ones
    cache.warn_once.cache_clear()
    folder.rmdir()
    folder.write_text("a file, where no folder can be made")
    (message,) = compile_anew()
    assert f"cannot be kept in {folder}" in message
