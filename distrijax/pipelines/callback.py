"""The caller's function that runs after each denoising step."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array

from distrijax.checks import whole_number
from distrijax.errors import DistrijaxError
from distrijax.models.autoencoder_tiny import Autoencoder
from distrijax.nn.module import Weights
from distrijax.parallel.placement import place
from distrijax.pipelines.cutoff import change_guidance
from distrijax.pipelines.decode import decoded
from distrijax.pipelines.finite import check_steps
from distrijax.pipelines.maps import MapKinds
from distrijax.sampling import programs
from distrijax.sampling.inputs import LoopInputs, TextInputs, pad_rows

if TYPE_CHECKING:
    from distrijax.pipelines.base import SDXLPipeline
    from distrijax.pipelines.stages import Call

StepFunction = Callable[[Any, int, float, dict[str, Any]], Mapping[str, Any] | None]

_TEXT_FIELDS = {"prompt_embeds": "context", "add_text_embeds": "pooled", "add_time_ids": "time_ids"}
_PREVIEWS = ("pred_original_sample", "preview")


@dataclasses.dataclass(frozen=True)
class StepCallback:
    """A function for `callback_on_step_end` with the names of its tensors, which need not run after every step.

    Attributes:
        function: see `callback_on_step_end`.
        tensor_inputs: names of the tensors that it receives, in place of `callback_on_step_end_tensor_inputs`.
        every: steps from one call to the next. Those between do not wait for the host.
    """

    function: StepFunction
    tensor_inputs: Sequence[str] = ("latents",)
    every: int = 1

    def __call__(self, *arguments: Any) -> Mapping[str, Any] | None:
        return self.function(*arguments)


@dataclasses.dataclass(frozen=True)
class Callback:
    """A function that runs after every step, or every few.

    Attributes:
        function: called as `function(pipe, step, timestep, tensors)`; it may return tensors to replace.
        inputs: names of the tensors that it receives.
        replaceable: names of those that it may return.
        every: steps from one call to the next.
    """

    function: StepFunction
    inputs: Sequence[str]
    replaceable: Sequence[str]
    every: int = 1

    @classmethod
    def of(cls, function: StepFunction | None, inputs: Sequence[str], maps: MapKinds) -> "Callback | None":
        """Return the callback for a call's arguments, or None if there is no function.

        A `StepCallback`, or a callback of diffusers, such as `SDXLCFGCutoffCallback`, names its inputs itself.
        """
        if function is not None and not callable(function):
            raise DistrijaxError(f"callback_on_step_end is {function!r}; it must be a function")
        every = whole_number("every", getattr(function, "every", 1), 1)
        inputs, replaceable = tuple(getattr(function, "tensor_inputs", inputs)), ("latents", *_TEXT_FIELDS, *maps.parts)
        known = (*replaceable, *_PREVIEWS)
        if unknown := sorted(set(inputs) - set(known)):
            raise DistrijaxError(
                f"callback_on_step_end_tensor_inputs has {', '.join(unknown)}; it may have {', '.join(known)}"
            )
        return None if function is None else cls(function, inputs, replaceable, every)

    @property
    def previews(self) -> bool:
        """Whether the function sees what a step predicts."""
        return any(name in self.inputs for name in _PREVIEWS)

    def next_turn(self, steps: int) -> int:
        """Return the number of steps after which the function is called next, when `steps` are taken."""
        return (steps // self.every + 1) * self.every


@dataclasses.dataclass(frozen=True)
class Held:
    """What a callback needs: the host's copies of what it may read and replace, and the autoencoder for previews.

    Attributes:
        maps: [B, h, w, ...] by name.
    """

    text: TextInputs
    maps: Mapping[str, np.ndarray]
    preview: Weights[Autoencoder]


@dataclasses.dataclass(frozen=True)
class _Returned:
    """What a callback returned after a step.

    Attributes:
        where: the beginning of messages about it.
        check_before: raises the error of latents that were not finite before.
    """

    tensors: Mapping[str, Any]
    where: str
    check_before: Callable[[], None]

    def array(self, name: str, *shapes: tuple[int, ...]) -> np.ndarray:
        """Return an array of one of these shapes, the first of which it had before."""
        array = np.asarray(self.tensors[name])
        if array.shape not in shapes:
            raise self.error(f"{name} of shape {array.shape}; it must keep the shape {shapes[0]}")
        if not np.isfinite(array).all():
            self.check_before()
            raise self.error(f"{name} with NaN or infinity in it; all its values must be finite")
        return array

    def error(self, message: str) -> DistrijaxError:
        return DistrijaxError(f"{self.where} {message}")


def call_back(
    pipe: "SDXLPipeline", call: "Call", callback: Callback, inputs: LoopInputs, held: Held, step: int, finite: Array
) -> tuple[LoopInputs, Held]:
    """Run the callback after a step; return the loop's inputs and the host's copies with its replacements.

    Args:
        finite: whether the latents of this step were finite before.
    """
    branches, parallel, layout = len(held.text.context), call.parallel, pipe.layout(call.shape[2])
    tensors: dict[str, Any] = {name: _flat(getattr(held.text, field)) for name, field in _TEXT_FIELDS.items()}
    tensors |= {name: _channels_first(held.maps[m][..., part], branches) for name, (m, part) in call.maps.parts.items()}
    seen: dict[str, Any] = {"latents": inputs.carry.latents, "pred_original_sample": inputs.carry.denoised}
    for name in seen.keys() & set(callback.inputs):
        rows = pipe.programs.crop(seen[name], parallel=parallel.program_key, height=layout.height)
        tensors[name] = rows.transpose(0, 3, 1, 2)
    if "preview" in callback.inputs:
        tensors["preview"] = decoded(pipe, held.preview, seen["pred_original_sample"], layout.height)
    before = pipe.guidance_scale, pipe.guidance_rescale
    given = {name: tensors[name] for name in callback.inputs}
    result = callback.function(pipe, step, call.schedule.timesteps[step], given) or {}
    where = f"in step {step}, callback_on_step_end returned"
    if not isinstance(result, Mapping):
        raise DistrijaxError(f"{where} {result!r}; it may return a dictionary or nothing")
    if unknown := sorted(set(result) - set(callback.replaceable)):
        raise DistrijaxError(f"{where} {', '.join(unknown)}; it may return {', '.join(callback.replaceable)}")
    check_before = partial(check_steps, finite, step, step + 1, len(call.schedule), pipe.dtype)
    returned = _Returned(result, where, check_before)

    def placed(latents: np.ndarray) -> Any:
        return place(pad_rows(latents, layout, axis=1), programs.LATENTS, parallel)

    if "latents" in result:
        new = placed(returned.array("latents", call.shape).astype(np.float32).transpose(0, 2, 3, 1))
        inputs = inputs._replace(carry=dataclasses.replace(inputs.carry, latents=new))
    maps = _changed_maps(returned, held, call)
    inputs = inputs._replace(maps={**inputs.maps, **{name: placed(x) for name, x in maps.items()}})
    text = _changed_text(returned, held.text, tensors, ends=branches == 2 and not pipe.do_classifier_free_guidance)
    if before != (pipe.guidance_scale, pipe.guidance_rescale):
        inputs, text = change_guidance(pipe, parallel, inputs, text, step)
    if text is not held.text:
        cond = pipe.programs.condition(
            inputs.unet, *place(text, programs.TEXT, parallel), parallel=parallel.program_key
        )
        inputs = inputs._replace(cond=cond)
    return inputs, dataclasses.replace(held, text=text, maps={**held.maps, **maps})


def _changed_maps(returned: _Returned, held: Held, call: "Call") -> dict[str, np.ndarray]:
    """Return those maps of which the callback has replaced a part."""
    maps: dict[str, np.ndarray] = {}
    for name, (of, part) in call.maps.parts.items():
        if name not in returned.tensors:
            continue
        batch, rows, columns, channels = held.maps[of][..., part].shape
        shape = channels, rows, columns
        several = returned.array(name, (len(held.text.context) * batch, *shape), (batch, *shape))
        several = several.reshape(-1, batch, *shape)
        if (several != several[0]).any():
            raise returned.error(f"a {name} that differs between the guidance branches; make them equal")
        maps[of] = maps.get(of, np.array(held.maps[of]))
        maps[of][..., part] = several[0].transpose(0, 2, 3, 1)
    return maps


def _changed_text(
    returned: _Returned, text: TextInputs, tensors: Mapping[str, np.ndarray], *, ends: bool
) -> TextInputs:
    """Return the text with the callback's replacements, or the same object if there are none.

    Args:
        tensors: what the callback may have received.
        ends: guidance ends with this step, so the branch with the prompt may be returned alone.
    """
    changed = {}
    for name, field in _TEXT_FIELDS.items():
        if name not in returned.tensors:
            continue
        before, prompted = getattr(text, field), _flat(getattr(text, field)[-1:])
        short = (prompted.shape, prompted[-1:].shape) if ends else ()
        value = returned.array(name, tensors[name].shape, *short).astype(before.dtype)
        if len(value) < len(prompted):  # diffusers' own callbacks keep the last picture's alone
            if (value != prompted[-1:]).any():
                raise returned.error(f"{name} for one picture of {len(prompted)}; return them for all")
            value = prompted
        value = value.reshape(-1, *before.shape[1:])
        changed[field] = np.concatenate([before[: len(before) - len(value)], value])
    return text._replace(**changed) if changed else text  # even with the same array: it may have changed in place


def _flat(x: Any) -> np.ndarray:  # [branches, B, ...] -> [branches * B, ...], as diffusers has it
    """Return a copy: JAX may read `x` itself while a callback writes to what it was given."""
    return np.array(x).reshape(-1, *x.shape[2:])


def _channels_first(x: np.ndarray, branches: int) -> np.ndarray:  # [B, h, w, C] -> [branches * B, C, h, w]
    return np.concatenate([x.transpose(0, 3, 1, 2)] * branches)
