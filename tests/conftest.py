"""Settings of every test: strict dtypes and ranks, full matmul precision, the CPU as eight devices."""

import gc
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Nearly all of the suite's time is compilation, and a third of that LLVM's optimizations. Other processes that tests
# start compile as users do, and so does `JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest`.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)
# A second run takes compiled programs from here.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "programs"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

if find_spec("torch") is None:
    # The tests that compare with torch and diffusers, themselves or through other files here.
    imports = {
        file: set(re.findall(r"^(?:from|import) (\w+)", file.read_text(), re.MULTILINE))
        for file in Path(__file__).parent.glob("*.py")
    }
    missing, count = {"torch", "diffusers"}, 0
    while count < len(missing):
        count = len(missing)
        missing |= {file.stem for file, names in imports.items() if names & missing}
    collect_ignore = [str(file) for file in imports if file.stem in missing and file.stem.startswith("test_")]


@pytest.fixture(scope="module", autouse=True)
def forget(request: pytest.FixtureRequest) -> Iterator[None]:
    """Free what a file of tests keeps: pipelines in its caches, and compiled programs; a whole run held 18 GB."""
    yield
    for value in vars(request.module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
    gc.collect()
    jax.clear_caches()


def pytest_report_header() -> str:
    """Say how many files of tests are left out without torch."""
    return f"torch is missing: {len(collect_ignore)} files are left out" if find_spec("torch") is None else "with torch"
