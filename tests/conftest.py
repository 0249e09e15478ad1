"""Settings of every test: strict dtypes and ranks, full matmul precision, the CPU as eight devices."""

import os
import re
from importlib.util import find_spec

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Nearly all of the suite's time is compilation: a second run takes it from here.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "programs"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

if find_spec("torch") is None:
    # The tests that compare with torch and diffusers, themselves or through a module of helpers.
    needs = re.compile(r"^(from|import) (torch|diffusers|reference|helpers_checkpoint|test_pipeline)\b", re.MULTILINE)
    collect_ignore = [str(file) for file in Path(__file__).parent.glob("test_*.py") if needs.search(file.read_text())]


def pytest_report_header() -> str:
    """Say how many files of tests are left out without torch."""
    return f"torch is missing: {len(collect_ignore)} files are left out" if find_spec("torch") is None else "with torch"
