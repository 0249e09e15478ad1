"""The caller's function that runs after each denoising step."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array

from distrijax.errors import DistrijaxError
from distrijax.models.unet import Conditioning
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.placement import place
from distrijax.pipelines.finite import check_steps
from distrijax.sampling import programs
from distrijax.sampling.denoise import Carry
from distrijax.sampling.inputs import LoopInputs, TextInputs, pad_rows
from distrijax.schedulers import Schedule

if TYPE_CHECKING:
    from distrijax.pipelines.base import SDXLPipeline

StepFunction = Callable[[Any, int, float, dict[str, Any]], Mapping[str, Any] | None]

_TEXT_FIELDS = {"prompt_embeds": "context", "add_text_embeds": "pooled", "add_time_ids": "time_ids"}
CALLBACK_INPUTS = ("latents", *_TEXT_FIELDS)


@dataclasses.dataclass(frozen=True)
class Callback:
    """A function that runs after each step.

    Attributes:
        function: called as `function(pipe, step, timestep, tensors)`; it may return tensors to replace.
        inputs: names of the tensors that it receives.
    """

    function: StepFunction
    inputs: Sequence[str] = ("latents",)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.inputs) - set(CALLBACK_INPUTS))
        if unknown:
            raise DistrijaxError(
                f"callback_on_step_end_tensor_inputs has {', '.join(unknown)}; it may have {', '.join(CALLBACK_INPUTS)}"
            )

    @classmethod
    def of(cls, function: StepFunction | None, inputs: Sequence[str]) -> "Callback | None":
        """Return the callback for a call's arguments, or None if there is no function."""
        checked = cls(function or (lambda *args: None), tuple(inputs))
        return None if function is None else checked


def call_back(
    pipe: "SDXLPipeline",
    callback: Callback,
    inputs: LoopInputs,
    step: int,
    schedule: Schedule,
    carry: Carry,
    text: TextInputs,
    layout: SlabLayout,
    finite: Array,
) -> tuple[Carry, TextInputs, Conditioning]:
    """Run the callback; return the carry, the text and the conditioning made of it, with its replacements.

    Args:
        finite: whether the latents of this step were finite before.
    """
    tensors: dict[str, Any] = {name: _flat(getattr(text, field)) for name, field in _TEXT_FIELDS.items()}
    if "latents" in callback.inputs:
        latents = pipe.programs.crop(carry.latents, parallel=pipe.parallel.program_key, height=layout.height)
        tensors["latents"] = latents.transpose(0, 3, 1, 2)
    given = {name: tensors[name] for name in callback.inputs}
    result = callback.function(pipe, step, schedule.timesteps[step], given) or {}
    returned = f"in step {step}, callback_on_step_end returned"
    if not isinstance(result, Mapping):
        raise DistrijaxError(f"{returned} {result!r}; it may return a dictionary or nothing")
    if unknown := sorted(set(result) - set(CALLBACK_INPUTS)):
        raise DistrijaxError(f"{returned} {', '.join(unknown)}; it may return {', '.join(CALLBACK_INPUTS)}")

    def checked(name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = np.asarray(result[name])
        if array.shape != shape:
            raise DistrijaxError(f"{returned} {name} of shape {array.shape}; it must keep the shape {shape}")
        if not np.isfinite(array).all():
            check_steps(finite, step, step + 1, len(schedule), pipe.dtype)
            raise DistrijaxError(f"{returned} {name} with NaN or infinity in it; all its values must be finite")
        return array

    if "latents" in result:
        batch, _, columns, channels = carry.latents.shape
        value = checked("latents", (batch, channels, layout.height, columns)).astype(np.float32).transpose(0, 2, 3, 1)
        placed: Any = place(pad_rows(value, layout, axis=1), programs.LATENTS, pipe.parallel)
        carry = dataclasses.replace(carry, latents=placed)
    changed = {}
    for name, field in _TEXT_FIELDS.items():
        if name in result:  # even the same array, which the callback may have changed in place
            before = getattr(text, field)
            changed[field] = checked(name, tensors[name].shape).astype(before.dtype).reshape(before.shape)
    if not changed:
        return carry, text, inputs.cond
    text = text._replace(**changed)
    placed = place(text, programs.TEXT, pipe.parallel)
    return carry, text, pipe.programs.condition(inputs.unet, *placed, parallel=pipe.parallel.program_key)


def _flat(x: Any) -> np.ndarray:  # [branches, B, ...] -> [branches * B, ...], as diffusers has it
    """Return a copy: JAX may read `x` itself while a callback writes to what it was given."""
    return np.array(x).reshape(-1, *x.shape[2:])
