"""How much of the last change of activations is expected to happen again in the next step."""

import numpy as np

from distrijax.parallel.messages import Persistence
from distrijax.schedulers import Schedule


def persistence(schedule: Schedule) -> Persistence:
    """Return the persistence of each row of a schedule, fp32 [S] each."""
    share = np.full(len(schedule), 0.5, np.float32)
    share[:2] = 0.0, 0.25
    noisy = schedule.draws | np.append(False, schedule.draws[:-1])
    share[noisy] = 0.0
    return Persistence(share, np.append(share[1:], np.float32(0)))  # type: ignore[arg-type]  # still on the host
