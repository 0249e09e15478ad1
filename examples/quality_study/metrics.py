"""Similarity of pictures, and a check for broken ones."""

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy.ndimage import correlate1d

Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Compares pictures [B, H, W, 3] in [0, 1] with references: [B]."""

WINDOW, SIGMA = 11, 1.5  # as in Wang et al. 2004, and so are the constants of SSIM
EQUAL = 120.0  # dB: fp32 pictures that differ by rounding alone have 100 to 120, and equal ones infinity


def psnr(pictures: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each picture [B, H, W, 3] in [0, 1], in dB, at most `EQUAL`: [B]."""
    error = np.square(np.subtract(pictures, references, dtype=np.float64)).mean((1, 2, 3))
    return -10 * np.log10(np.maximum(error, 10 ** (-EQUAL / 10)))


def ssim(pictures: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the structural similarity of each picture [B, H, W, 3] in [0, 1]: [B].

    The mean over channels, and over the pixels whose whole window lies in the picture.
    """
    # Picture by picture: in float64, the five blurred products of 64 pictures would be half a gigabyte.
    pairs = zip(pictures.astype(np.float64), references.astype(np.float64), strict=True)
    return np.array([_ssim(x, y) for x, y in pairs])


def _ssim(x: np.ndarray, y: np.ndarray) -> float:
    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _blur(x: np.ndarray) -> np.ndarray:
    """Blur [H, W, 3] with the Gaussian window: [H - 10, W - 10, 3]."""
    reach = WINDOW // 2
    weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / SIGMA))
    weights /= weights.sum()
    blurred = correlate1d(correlate1d(x, weights, 0), weights, 1)
    return blurred[reach:-reach, reach:-reach]


def broken(pictures: np.ndarray) -> np.ndarray:
    """Return which pictures are not finite, or all of one colour (usually black): bool [B]."""
    flat = pictures.reshape(len(pictures), -1, pictures.shape[-1])
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        constant = np.ptp(flat, 1).max(-1) < 1 / 255
    return constant | ~np.isfinite(flat).all((1, 2))


_LPIPS: dict[str, tuple[str, str, dict[str, object]]] = {
    "lpips": ("lpips", "LPIPS", {"net": "alex", "verbose": False}),
    "torchmetrics": ("torchmetrics.image.lpip", "LearnedPerceptualImagePatchSimilarity", {"net_type": "alex"}),
}
"""Packages that have LPIPS, the first that is installed counts: module, class and its options."""


@cache
def lpips() -> tuple[Metric | None, str]:
    """Return LPIPS with AlexNet, and whose it is; or None, and why it is not measured."""
    for package, (module, name, options) in _LPIPS.items():
        if find_spec(package) is not None:
            # Its network's weights are downloaded, and it may not fit the torch that is here: any error may come.
            try:
                distance = getattr(import_module(module), name)(**options)
            except Exception as error:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                return None, f"LPIPS is not measured: {package} cannot be used ({reason})"
            return partial(_one_by_one, distance), f"LPIPS is that of {package}, with AlexNet; lower is better"
    return None, f"LPIPS is not measured: neither {' nor '.join(_LPIPS)} is installed"


def _one_by_one(distance: Callable[..., Any], pictures: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the distance of each picture, given a function of torch tensors [1, 3, H, W] in [-1, 1]."""
    import torch

    def tensor(picture: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(2 * np.asarray(picture, np.float32).transpose(2, 0, 1)[None] - 1)

    with torch.no_grad():
        pairs = zip(pictures, references, strict=True)
        return np.array([float(distance(tensor(x), tensor(y))) for x, y in pairs])
