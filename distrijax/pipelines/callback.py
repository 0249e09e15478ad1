"""The caller's function that runs after each denoising step."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array

from distrijax.errors import DistrijaxError
from distrijax.parallel.placement import place
from distrijax.pipelines.cutoff import change_guidance
from distrijax.pipelines.finite import check_steps
from distrijax.pipelines.maps import MapKinds
from distrijax.sampling import programs
from distrijax.sampling.inputs import LoopInputs, TextInputs, pad_rows

if TYPE_CHECKING:
    from distrijax.pipelines.base import SDXLPipeline
    from distrijax.pipelines.stages import Call

StepFunction = Callable[[Any, int, float, dict[str, Any]], Mapping[str, Any] | None]

_TEXT_FIELDS = {"prompt_embeds": "context", "add_text_embeds": "pooled", "add_time_ids": "time_ids"}


@dataclasses.dataclass(frozen=True)
class Callback:
    """A function that runs after each step.

    Attributes:
        function: called as `function(pipe, step, timestep, tensors)`; it may return tensors to replace.
        inputs: names of the tensors that it receives.
        known: names of those that it may receive and return.
    """

    function: StepFunction
    inputs: Sequence[str]
    known: Sequence[str]

    @classmethod
    def of(cls, function: StepFunction | None, inputs: Sequence[str], maps: MapKinds) -> "Callback | None":
        """Return the callback for a call's arguments, or None if there is no function.

        A callback of diffusers, such as `SDXLCFGCutoffCallback`, names its inputs itself.
        """
        inputs, known = tuple(getattr(function, "tensor_inputs", inputs)), ("latents", *_TEXT_FIELDS, *maps.parts)
        if unknown := sorted(set(inputs) - set(known)):
            raise DistrijaxError(
                f"callback_on_step_end_tensor_inputs has {', '.join(unknown)}; it may have {', '.join(known)}"
            )
        return None if function is None else cls(function, inputs, known)


@dataclasses.dataclass(frozen=True)
class Held:
    """The host's copies of what a callback may read and replace.

    Attributes:
        maps: [B, h, w, ...] by name.
    """

    text: TextInputs
    maps: Mapping[str, np.ndarray]


def call_back(
    pipe: "SDXLPipeline", call: "Call", callback: Callback, inputs: LoopInputs, held: Held, step: int, finite: Array
) -> tuple[LoopInputs, Held]:
    """Run the callback after a step; return the loop's inputs and the host's copies with its replacements.

    Args:
        finite: whether the latents of this step were finite before.
    """
    branches, parallel, layout = len(held.text.context), pipe.parallel, pipe.layout(call.shape[2])
    tensors: dict[str, Any] = {name: _flat(getattr(held.text, field)) for name, field in _TEXT_FIELDS.items()}
    tensors |= {name: _channels_first(held.maps[m][..., part], branches) for name, (m, part) in call.maps.parts.items()}
    if "latents" in callback.inputs:
        latents = pipe.programs.crop(inputs.carry.latents, parallel=parallel.program_key, height=layout.height)
        tensors["latents"] = latents.transpose(0, 3, 1, 2)
    given = {name: tensors[name] for name in callback.inputs}
    before = pipe.guidance_scale, pipe.guidance_rescale
    result = callback.function(pipe, step, call.schedule.timesteps[step], given) or {}
    returned = f"in step {step}, callback_on_step_end returned"
    if not isinstance(result, Mapping):
        raise DistrijaxError(f"{returned} {result!r}; it may return a dictionary or nothing")
    if unknown := sorted(set(result) - set(callback.known)):
        raise DistrijaxError(f"{returned} {', '.join(unknown)}; it may return {', '.join(callback.known)}")

    def checked(name: str, shape: tuple[int, ...], *others: tuple[int, ...]) -> np.ndarray:
        array = np.asarray(result[name])
        if array.shape not in (shape, *others):
            raise DistrijaxError(f"{returned} {name} of shape {array.shape}; it must keep the shape {shape}")
        if not np.isfinite(array).all():
            check_steps(finite, step, step + 1, len(call.schedule), pipe.dtype)
            raise DistrijaxError(f"{returned} {name} with NaN or infinity in it; all its values must be finite")
        return array

    if "latents" in result:
        value = checked("latents", call.shape).astype(np.float32).transpose(0, 2, 3, 1)
        placed: Any = place(pad_rows(value, layout, axis=1), programs.LATENTS, parallel)
        inputs = inputs._replace(carry=dataclasses.replace(inputs.carry, latents=placed))

    maps = dict(held.maps)
    for name in call.maps.parts.keys() & result.keys():
        of, part = call.maps.parts[name]
        batch, *rest = tensors[name].shape
        halves = checked(name, (batch, *rest), (call.shape[0], *rest)).reshape(-1, call.shape[0], *rest)
        if (halves != halves[0]).any():
            raise DistrijaxError(f"{returned} a {name} that differs between the guidance branches; make them equal")
        maps[of] = np.array(maps[of])
        maps[of][..., part] = halves[0].transpose(0, 2, 3, 1)
        placed = place({of: pad_rows(maps[of], layout, axis=1)}, programs.LATENTS, parallel)
        inputs = inputs._replace(maps={**inputs.maps, **placed})

    after, changed = (pipe.guidance_scale, pipe.guidance_rescale), {}
    ends = branches == 2 and not pipe.do_classifier_free_guidance
    for name, field in _TEXT_FIELDS.items():
        if name in result:  # even the same array, which the callback may have changed in place
            array, own = getattr(held.text, field), tensors[name]
            half = own[len(own) // branches * (branches - 1) :]  # the branch with the prompt
            short = (half.shape, half[-1:].shape) if ends else ()
            value = checked(name, own.shape, *short).astype(array.dtype)
            if len(value) < len(half):  # diffusers' own callbacks keep the last picture's alone
                if (value != half[-1:]).any():
                    raise DistrijaxError(f"{returned} {name} for one picture of {len(half)}; return them for all")
                value = half
            value = value.reshape(-1, *array.shape[1:])
            changed[field] = np.concatenate([array[: branches - len(value)], value])
    text = held.text._replace(**changed)
    if before != after:
        inputs, text = change_guidance(pipe, inputs, text, step)
    if changed or len(text.context) < branches:
        placed = place(text, programs.TEXT, parallel)
        inputs = inputs._replace(cond=pipe.programs.condition(inputs.unet, *placed, parallel=parallel.program_key))
    return inputs, Held(text, maps)


def _flat(x: Any) -> np.ndarray:  # [branches, B, ...] -> [branches * B, ...], as diffusers has it
    """Return a copy: JAX may read `x` itself while a callback writes to what it was given."""
    return np.array(x).reshape(-1, *x.shape[2:])


def _channels_first(x: Any, branches: int) -> np.ndarray:  # [B, h, w, C] -> [branches * B, C, h, w]
    return np.concatenate([x.transpose(0, 3, 1, 2)] * branches)
