"""Compiling the programs of a call before it needs them, all at once, from the shapes of its arrays."""

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from distrijax.parallel.options import for_autoencoder
from distrijax.parallel.placement import place
from distrijax.parallel.spread import PER_DEVICE
from distrijax.pipelines.loop import static_arguments
from distrijax.pipelines.stages import Call, condition_on_text, first_inputs
from distrijax.runtime.compile import Prepared, Program
from distrijax.sampling.programs import CARRY

if TYPE_CHECKING:
    from distrijax.pipelines.base import Parts, SDXLPipeline


def begin_compiling(pipe: "SDXLPipeline", call: Call, parts: "Parts", *, encodes: bool) -> list[Prepared]:
    """Trace the programs of a call, and begin to compile each as soon as it is traced.

    Args:
        parts: the weights, or their shapes.
        encodes: see `make_pictures`.
    """
    begun: list[Prepared] = []

    def begin(program: Program, *args: object, **static: Any) -> Any:
        begun.append(program.prepare(*args, **static))
        return begun[-1].results

    def encode(*args: object, **static: Any) -> Any:
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), begin(programs.encode_prompt, *args, **static))

    programs, parallel = pipe.programs, call.parallel
    rows_only = for_autoencoder(parallel)
    quiet = [tokenizer.quiet() for tokenizer in pipe.tokenizers]
    text = jax.tree.map(_shape, condition_on_text(pipe, call, parts, quiet, encode))
    batch, channels, rows, columns = call.shape
    if encodes:
        picture = (1, rows * pipe.vae_scale_factor, columns * pipe.vae_scale_factor, 3)
        image = jax.ShapeDtypeStruct(picture, np.float32)
        begin(programs.encode_image, parts["vae"], image, parallel=for_autoencoder(parallel, encoding=True))
    latents, noise = jax.ShapeDtypeStruct((batch, rows, columns, channels), np.float32), None
    if call.schedule.draws.any():
        noise = jax.ShapeDtypeStruct((len(call.schedule), *latents.shape), np.float32)

    def first_pieces(*args: object, **static: Any) -> Any:
        return place(jax.tree.map(_shape, begin(programs.first_pieces, *args, **static)), PER_DEVICE, parallel)

    maps = {name: jax.ShapeDtypeStruct((*latents.shape[:3], n), np.float32) for name, n in call.maps.channels.items()}
    inputs = first_inputs(
        pipe, call, parts, text, latents, maps, noise, partial(begin, programs.condition), first_pieces
    )
    inputs = inputs.with_steps(0, 1, parallel)
    static = static_arguments(pipe, call)
    for _, phase in parallel.phases(call.schedule.steps):
        carry, *_ = begin(programs.denoise[phase.name], *inputs, **static, phase=phase)
        inputs = inputs._replace(carry=place(jax.tree.map(_shape, carry), CARRY, parallel))
    final, latent = inputs.carry.latents, call.output_type == "latent"
    seen = () if call.callback is None else call.callback.inputs
    if latent or {"latents", "pred_original_sample"} & set(seen):
        begin(programs.crop, final, parallel=parallel.program_key, height=rows)
    if "preview" in seen:
        preview = parts.get("preview", parts["vae"])
        begin(programs.decode, preview, final, np.int32(0), parallel=rows_only, height=rows)
    if not latent and call.then is None:
        begin(programs.decode, parts["vae"], final, np.int32(0), parallel=rows_only, height=rows)
    return begun


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
