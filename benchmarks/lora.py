"""Time LoRAs in a U-Net with random weights: the first one, which compiles, another one, and other weights.

    python benchmarks/lora.py --model sdxl-base --ranks 32,8,128

Every linear layer of attention and feed-forward has a LoRA. SDXL's U-Net takes 5.1 GB in bfloat16, and the weights that
are changed 4.4 GB more.
"""

import argparse
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from distrijax import Parallel, UNet
from distrijax.adapters.chosen import Adapters
from distrijax.adapters.files import open_adapter, read_adapter
from distrijax.adapters.kinds import Delta
from distrijax.adapters.merge import Merge
from distrijax.adapters.names import layers_of
from distrijax.checkpoint import Component, find
from distrijax.nn.conv import order_kernels
from distrijax.nn.module import Weights, abstract


def random_lora(component: Component, rank: int, seed: int) -> dict[str, np.ndarray]:
    """Return a LoRA for every linear layer of the transformers, in float16."""
    rng, state = np.random.default_rng(seed), dict[str, np.ndarray]()
    for name, parameters in layers_of(component).items():
        if ".transformer_blocks." in name and "weight" in parameters and len(parameters["weight"].shape) == 2:
            outputs, inputs = parameters["weight"].shape
            for part, shape in {"A": (rank, inputs), "B": (outputs, rank)}.items():
                state[f"unet.{name}.lora_{part}.weight"] = rng.random(shape, np.float32).astype(np.float16) / 100
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sdxl-base", help="(default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="(default: %(default)s)")
    parser.add_argument("--ranks", default="32,8,128", help="of LoRAs that are made in turn (default: %(default)s)")
    options = parser.parse_args()
    parallel, merge, adapters = Parallel(), Merge(), Adapters()
    config = find(options.model).unet
    shapes = abstract(UNet, config, jnp.dtype(options.dtype))
    order_kernels(shapes, parallel.kernel_order)
    full = jax.jit(lambda like: jnp.full(like.shape, 0.02, like.dtype), static_argnums=0)
    unet = jax.tree.map(lambda x: jax.device_put(full(x), parallel.replicated), shapes)
    component = Component.from_module("unet", unet)
    print(f"U-Net: {sum(x.nbytes for x in jax.tree.leaves(unet)) / 1e9:.2f} GB {options.dtype}, {_peak()}")

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        before, start = _compiled(merge), time.perf_counter()
        yield
        jax.block_until_ready(Weights.of(unet).arrays)
        seconds, compiled = time.perf_counter() - start, _compiled(merge) - before
        print(f"{what:32} {seconds:7.2f} s, {compiled:2} programs compiled, {_peak()}", flush=True)

    def wanted(scale: float) -> dict[str, tuple[tuple[Delta, float], ...]]:
        return adapters.wanted("unet", config, scale)

    for number, rank in enumerate(map(int, options.ranks.split(","))):
        state = random_lora(component, rank, number)
        with timed(f"rank {rank}: read {sum(x.nbytes for x in state.values()) / 1e6:.0f} MB"):
            adapters.add(f"{number}", read_adapter(open_adapter(state), {"unet": component}), replace=False)
        del state
        with timed(f"rank {rank}: merge"):
            merge.apply(unet, wanted(1.0))
        with timed(f"rank {rank}: another weight"):
            merge.apply(unet, wanted(0.5))
        with timed(f"rank {rank}: nothing to do"):
            merge.apply(unet, wanted(0.5))
    with timed("without"):
        merge.apply(unet, {})


def _compiled(merge: Merge) -> int:
    return sum(program.compiled for program in merge.all)


def _peak() -> str:
    return f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB"


if __name__ == "__main__":
    main()
