"""diffusers' DPMSolverSDEScheduler without torchsde: its noise is drawn from a generator of ours."""

import sys
import types
from typing import Any

import torch


def scheduler_class() -> Any:
    """Return the class, whose module does not import without torchsde."""
    sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
    from diffusers.schedulers import scheduling_dpmsolver_sde as module

    module.BrownianTreeNoiseSampler = BrownianPath
    return module.DPMSolverSDEScheduler


class BrownianPath:
    """Increments of one Brownian path over sigma, in place of a tree that can be asked for any two levels.

    A step asks for the way to its middle, then for all of it, which contains the first.
    """

    generator: torch.Generator

    def __init__(self, x: torch.Tensor, *_: Any) -> None:
        self.shape, self.middle, self.first = x.shape, torch.tensor(0.0), None

    def __call__(self, sigma: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        fresh = torch.randn(self.shape, generator=self.generator)
        if self.first is None:
            self.middle, self.first = after, fresh
            return fresh
        near, far = sigma - self.middle, self.middle - after
        whole = (near**0.5 * self.first + far**0.5 * fresh) / (near + far) ** 0.5
        self.first = None
        return whole
