"""The caller's function that runs after each denoising step."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distrijax.errors import DistrijaxError

StepFunction = Callable[[Any, int, float, dict[str, Any]], Mapping[str, Any] | None]

CALLBACK_INPUTS = ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids")


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
