"""Store the compiled programs of a small U-Net, which test_plan.py reads: needs JAX's CUDA compiler, but no GPU.

    python tests/store_hlo.py    # writes tests/data/{synchronous,displaced}-jax-<version>.hlo.xz

Eight H100s, cfg=2 x patch=4, latents of 32x32. Only the loop's body is stored and what it calls, without what no reader
of programs needs.
"""

import lzma
import re
from pathlib import Path

import jax
import jax.numpy as jnp

from distrijax import Parallel
from distrijax.config import UNetConfig
from distrijax.parallel.cards import CARDS
from distrijax.sampling.inputs import abstract_inputs
from distrijax.tools import loop
from distrijax.tools.plan.gpus import on_absent_gpus, prepare_cuda_compiler

CONFIG = UNetConfig.from_json(
    {
        "sample_size": 32,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 1,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "cross_attention_dim": 32,
        "projection_class_embeddings_input_dim": 80,
        "use_linear_projection": True,
        "norm_num_groups": 8,
    }
)


def body(text: str) -> str:
    """Return the body of the program's loop, and the computations that it calls."""
    blocks = dict(re.findall(r"\n(?:ENTRY )?%?([\w.\-]+) (\(.*\) -> .*\{\n(?:.*\n)*?\})", text))
    (start,) = re.findall(r"body=%?([\w.\-]+)", text)
    needed, found = [start], {start}
    for name in needed:
        called = re.findall(r"(?:calls|to_apply|body)=%?([\w.\-]+)", blocks[name])
        needed += [other for other in dict.fromkeys(called) if other not in found]
        found |= set(called)
    texts = [
        f"%{start} {_short(blocks[start])}",
        *(f"%{name} {_numbered(_short(blocks[name]))}" for name in needed[1:]),
    ]
    entry = f"ENTRY %main (x: s32[]) -> s32[] {{\n  ROOT %while = s32[] while(%x), body=%{start}\n}}\n"
    return "\n\n".join(["HloModule jit_denoise, is_scheduled=true", *texts, entry])


def _short(block: str) -> str:
    """Return a computation without what the plan does not read."""
    keep = r'"(?:[lr]hs_(?:contracting|batch)_dimensions)":\[[^\]]*\]|"is_sync":\w+'
    block = re.sub(r"backend_config=\{.*", lambda m: f"backend_config={{{','.join(re.findall(keep, m[0]))}}}", block)
    block = re.sub(r', metadata=\{(?:op_name="([^"]*)")?[^}]*\}', r', metadata={op_name="\1"}', block)
    return re.sub(r"(\])\{[\d,]*\}|/\*index=\d+\*/|, control-predecessors=\{[^}]*\}", r"\1", block)


def _numbered(block: str) -> str:
    """Return a called computation with numbers for names, so that equal ones are equal."""
    numbers = {name: f"%i{n}" for n, name in enumerate(dict.fromkeys(re.findall(r"(%[\w.\-]+) = ", block)))}
    block = re.sub(r"(?<!=)%[\w.\-]+", lambda m: numbers.get(m[0], m[0]), block)
    return re.sub(r"\(.*\) -> |, metadata=\{[^}]*\}", lambda m: "() -> " if m[0].startswith("(") else "", block)


def main() -> None:
    prepare_cuda_compiler()
    layout = Parallel(cfg=2, patch=4, warmup_steps=1, emulate=True)
    parallel = on_absent_gpus(layout, CARDS["h100"])
    inputs, slabs = abstract_inputs(
        CONFIG, parallel=parallel, scheduler=loop.SCHEDULER, height=32, width=32, dtype=jnp.bfloat16, guided=True,
        pictures=1,
    )  # fmt: skip
    call = loop.LoopCall(inputs, parallel, slabs)
    for _, phase in layout.phases(4):
        program = loop.compile_phase(call, phase, {"xla_gpu_autotune_level": 0})
        text, version = body(program.executable.as_text() or ""), ".".join(jax.__version__.split(".")[:2])
        path = Path(__file__).parent / "data" / f"{phase.name}-jax-{version}.hlo.xz"
        path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
        call = program.after


if __name__ == "__main__":
    main()
