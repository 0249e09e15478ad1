"""Guidance that a callback changes between two steps, or ends."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from distrijax.checks import finite_number
from distrijax.errors import DistrijaxError
from distrijax.parallel.options import Parallel
from distrijax.parallel.placement import place
from distrijax.sampling import programs
from distrijax.sampling.guidance import Guidance
from distrijax.sampling.inputs import LoopInputs, TextInputs

if TYPE_CHECKING:
    from distrijax.pipelines.base import SDXLPipeline


class GuidanceState:
    """What a callback reads and sets on its pipeline during a call, under diffusers' names.

    Attributes:
        interrupt: a step callback may set it, or `_interrupt` as in diffusers, to true to skip the remaining steps.
        num_timesteps: number of steps of the call.
    """

    interrupt = _interrupt = False
    num_timesteps = 0
    _guidance_scale, _guidance_rescale = 1.0, 0.0

    def begin_steps(self, steps: int, guidance_scale: float, guidance_rescale: float) -> None:
        """Set all of it for a new call."""
        self.interrupt = self._interrupt = False
        self.num_timesteps = steps
        self._guidance_scale, self._guidance_rescale = guidance_scale, guidance_rescale

    @property
    def interrupted(self) -> bool:
        """Whether to skip the remaining steps."""
        return bool(self.interrupt or self._interrupt)

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the next step; a callback changes it by setting `_guidance_scale`."""
        return finite_number("_guidance_scale", self._guidance_scale)

    @property
    def guidance_rescale(self) -> float:
        """The guidance rescale of the next step; a callback changes it by setting `_guidance_rescale`."""
        return finite_number("_guidance_rescale", self._guidance_rescale, 0, 1)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the next step has two guidance branches."""
        return self.guidance_scale > 1 and not self.distilled

    @property
    def distilled(self) -> bool:
        """Whether guidance is an input of the U-Net (LCM) instead of a combination of two of its outputs."""
        raise NotImplementedError


def change_guidance(
    pipe: "SDXLPipeline", parallel: Parallel, inputs: LoopInputs, text: TextInputs, step: int
) -> tuple[LoopInputs, TextInputs]:
    """Return the loop's inputs, and the text that they are made from, with the guidance that `pipe` has now.

    Where guidance ends, so does the branch without the prompt: the steps that follow cost half, in a program of their
    own. Devices of cfg=2 hold one branch each, so there the branch stays, with the weight 0.
    """
    branches = len(text.context)
    if pipe.distilled:  # the scale was embedded before the first step
        return inputs, text
    if branches == 1:
        if pipe.do_classifier_free_guidance:
            raise DistrijaxError(
                f"in step {step}, callback_on_step_end set _guidance_scale to {pipe.guidance_scale}, but there is no "
                "branch without the prompt left; begin with a guidance_scale above 1, and keep it above"
            )
        return inputs, text
    if pipe.do_classifier_free_guidance:
        guidance = Guidance.of(pipe.guidance_scale, pipe.guidance_rescale)
    elif parallel.cfg > 1:
        guidance = Guidance.of(1.0)  # 0 times the first branch and 1 times the second
    else:
        if inputs.carry.pieces is not None and parallel.policy.carries:
            pieces = pipe.programs.end_guidance(inputs.carry.pieces, parallel=parallel.program_key)
            inputs = inputs._replace(carry=dataclasses.replace(inputs.carry, pieces=pieces))
        guidance = Guidance.of(None)
        text = TextInputs(*(getattr(text, field)[-1:] for field in ("context", "pooled", "time_ids")))
    if guidance.rescale is None and len(text.context) == 2 and inputs.guidance.rescale is not None:
        rescale: Any = np.float32(0)
        guidance = dataclasses.replace(guidance, rescale=rescale)  # compiles nothing
    return inputs._replace(guidance=place(guidance, programs.GUIDANCE, parallel)), text
