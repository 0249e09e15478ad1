"""Pictures and measurements for the tests of the quality study, whose folder this puts on the path."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from quality_study.results import Measurement


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def measured(*psnr: float) -> Measurement:
    """A measurement of three pictures, one of them without problems."""
    return Measurement([0, 1, 2], [], list(psnr), [0.9] * len(psnr))
