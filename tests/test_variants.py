"""The variants of `examples/measure_gpu.py` compile for GPUs, with options that XLA knows. No GPU is needed."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from distrijax.tools.plan.gpus import missing_compiler

pytestmark = [
    pytest.mark.cuda_compiler,
    pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler())),
]

# In a process of its own: the CUDA compiler has to be found before JAX knows its devices.
WORKER = """
import json, sys
from distrijax.parallel.cards import CARDS
from distrijax.tools.plan.gpus import on_absent_gpus, prepare_cuda_compiler
prepare_cuda_compiler()
sys.path.insert(0, sys.argv[1])
import jax, jax.numpy as jnp
from flax import nnx
from distrijax import Parallel
from distrijax.nn.transformer import FeedForward
from gpu.steps import NO_GRAPHS
from gpu.variants import VARIANTS, Variant
parallel = on_absent_gpus(Parallel(emulate=True), CARDS["h100"])
x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=parallel.replicated)
feed_forward = FeedForward(256, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
refused = {}
wrong = {"a misspelt option": Variant({"xla_gpu_enable_triton_gemms": True})}
for name, variant in {**VARIANTS, "no graphs": NO_GRAPHS, **wrong}.items():
    try:
        with variant.active(), jax.sharding.use_abstract_mesh(parallel.mesh.abstract_mesh):
            lowered = jax.jit(lambda x: feed_forward(x)).lower(x)
        lowered.compile(compiler_options={"xla_gpu_autotune_level": 0, **variant.options})
    except Exception as error:
        refused[name] = str(error)
print(json.dumps(refused))
"""


def test_every_variant_compiles() -> None:
    benchmarks = str(Path(__file__).parents[1] / "benchmarks")
    done = subprocess.run([sys.executable, "-c", WORKER, benchmarks], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    refused = json.loads(done.stdout.splitlines()[-1])
    assert "xla_gpu_enable_triton_gemms" in refused.pop("a misspelt option")
    if jax.__version_info__ < (0, 11):
        assert "xla_gpu_enable_pdl_launch" in refused.pop("programmatic dependent launch")
    assert not refused
