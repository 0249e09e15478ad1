"""How much of the last change of activations is expected to happen again in the next step."""

import numpy as np

from distrijax.parallel.messages import Persistence
from distrijax.schedulers import EulerDiscreteScheduler, Schedule

LARGEST, REACH = 0.5, 25.0
"""Predictions go on by half of the next step, but by no more than this many of the 1000 steps of training.

Half, since a device's error comes back from its neighbours a step later: with a whole step, halos alone lose 9 dB. At
10 steps, where a whole one is 100 steps of training, half a step lost 6 dB of one picture, and a quarter of one gained.
"""


def persistence(schedule: Schedule) -> Persistence:
    """Return the share of the last change in each row of a schedule, fp32 [S] each.

    It is 0 in the first row, which follows no change, and where the latents get fresh noise before either evaluation.
    """
    times = _training_steps(schedule.noise_level / np.maximum(schedule.signal, 1e-6))
    lengths = np.abs(np.diff(times))
    last, following = np.append(0.0, lengths), np.append(lengths, 0.0)
    reach = np.minimum(np.minimum(last, following) * LARGEST, REACH)
    share = np.where(last > 0, reach / np.maximum(last, 1e-6), 0.0).astype(np.float32)
    share[schedule.draws | np.append(False, schedule.draws[:-1])] = 0.0
    around = np.pad(share, 1)
    return Persistence(around[:-2], share, around[2:])  # type: ignore[arg-type]  # still on the host


_TRAINING = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def _training_steps(sigmas: np.ndarray) -> np.ndarray:
    """Return the steps of SDXL's training that have these ratios of noise to signal."""
    trained = _TRAINING.train_sigmas
    return np.interp(np.log(np.maximum(sigmas, 1e-6)), np.log(trained), np.arange(len(trained)))
