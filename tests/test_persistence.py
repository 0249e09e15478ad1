"""How far predictions go, by schedule."""

import numpy as np
import pytest

from distrijax import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
)
from distrijax.sampling.persistence import persistence
from distrijax.schedulers import Scheduler

SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def shares(scheduler: Scheduler, steps: int) -> np.ndarray:
    return np.asarray(persistence(scheduler.schedule(steps)).now)


@pytest.mark.fast
@pytest.mark.parametrize("scheduler", [DDIMScheduler(**SDXL), EulerDiscreteScheduler(**SDXL)])
def test_predictions_go_on_by_half_a_step_but_not_far(scheduler: Scheduler) -> None:
    """50 steps are 20 of training each, and 10 are 100, of which 25 are a quarter; Euler's are up to 111."""
    for steps, share in ((50, 0.5), (25, 0.5), (10, 0.25)):
        first, *inner, last = shares(scheduler, steps)
        assert first == last == 0
        np.testing.assert_allclose(inner, share, rtol=0.15 if scheduler.class_name.startswith("Euler") else 0.01)


@pytest.mark.fast
def test_steps_of_other_lengths() -> None:
    """A step that is shorter than the last one goes on by half of its own length."""
    share = shares(DPMSolverMultistepScheduler(**SDXL, use_karras_sigmas=True), 25)
    assert share.max() == 0.5
    assert 0.2 < share[1:-1].min() < 0.3


@pytest.mark.fast
@pytest.mark.parametrize(
    "scheduler", [EulerAncestralDiscreteScheduler(**SDXL), LCMScheduler(**SDXL), HeunDiscreteScheduler(**SDXL)]
)
def test_what_cannot_be_foreseen_is_not_predicted(scheduler: Scheduler) -> None:
    """Fresh noise, and Heun's second evaluations, before which the noise level stays."""
    assert not shares(scheduler, 8).any()


@pytest.mark.fast
def test_the_shares_around_a_row_are_those_of_its_neighbours() -> None:
    share = persistence(DDIMScheduler(**SDXL).schedule(10))
    np.testing.assert_array_equal(share.last, np.append(0, share.now[:-1]))  # type: ignore[index]
    np.testing.assert_array_equal(share.next, np.append(share.now[1:], 0))  # type: ignore[index]
