"""The metrics of the quality study: PSNR, SSIM, LPIPS, and which pictures are broken."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from quality_helpers import measured, noise
from quality_study import metrics, report
from quality_study.settings import BASE


def test_psnr_of_known_errors() -> None:
    gray = np.full((3, 8, 8, 3), 0.5, np.float32)
    shifted = gray + np.float32([0.1, 0.01, 0])[:, None, None, None]
    # 1e-3 dB: the fp32 rounding of 0.51 is 3e-8 of an error of 1e-2
    np.testing.assert_allclose(metrics.psnr(shifted, gray), [20, 40, metrics.EQUAL], atol=1e-3)


def direct_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of one channel by its definition, window by window."""
    distance = np.arange(11) - 5
    window = np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            numerator = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
            values.append(numerator / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    return float(np.mean(values))


def test_ssim_is_its_definition() -> None:
    x = noise(0, 2, 16, 13, 3)
    y = np.clip(x + 0.2 * noise(1, *x.shape), 0, 1)
    expected = [np.mean([direct_ssim(x[b, :, :, c], y[b, :, :, c]) for c in range(3)]) for b in range(2)]
    ours = metrics.ssim(x, y)
    print(ours)
    assert ours.max() < 0.99  # far enough from 1 that another window or constant would show
    np.testing.assert_allclose(ours, expected, rtol=1e-7)  # float64, summed in another order: about 1e-12


def test_ssim_of_flat_pictures() -> None:
    """Without any structure only the means matter: (2 a b + c) / (a² + b² + c)."""
    dark, light = (np.full((1, 16, 16, 3), value, np.float32) for value in (0.25, 0.75))
    np.testing.assert_allclose(metrics.ssim(dark, light), (2 * 0.1875 + 1e-4) / (0.625 + 1e-4), rtol=1e-9)
    np.testing.assert_allclose(metrics.ssim(dark, dark), 1)


def test_broken_pictures_are_found() -> None:
    pictures = noise(0, 5, 8, 8, 3)
    pictures[1] = 0
    pictures[2] = [0.2, 0.5, 0.7]  # one colour, though its channels differ
    pictures[3, 4, 4, 1] = np.nan
    assert metrics.broken(pictures).tolist() == [False, True, True, True, False]


def test_lpips_is_never_required(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.lpips.cache_clear()
    monkeypatch.setattr(metrics, "find_spec", lambda package: None)
    assert metrics.lpips() == (None, "LPIPS is not measured: neither lpips nor torchmetrics is installed")
    assert "neither lpips nor torchmetrics is installed." in report.lpips_note({BASE: measured(30.0)})
    metrics.lpips.cache_clear()
    monkeypatch.setattr(metrics, "find_spec", lambda package: True if package == "torchmetrics" else None)

    def no_network(name: str) -> None:
        raise OSError("no route to the host\nof the weights")

    monkeypatch.setattr(metrics, "import_module", no_network)
    reason = "torchmetrics cannot be used (no route to the host)"
    assert metrics.lpips() == (None, f"LPIPS is not measured: {reason}")
    metrics.lpips.cache_clear()


def test_lpips_gets_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch tensors [1, 3, H, W] in [-1, 1], picture by picture."""
    torch = pytest.importorskip("torch")

    class LPIPS:
        def __init__(self, **options: object) -> None:
            assert options == {"net": "alex", "verbose": False}

        def __call__(self, x: Any, y: Any) -> Any:
            assert x.shape == y.shape == (1, 3, 8, 4)
            assert x.dtype == torch.float32
            return (x[:, 2] - y[:, 2]).abs().max().reshape(1, 1, 1, 1)

    metrics.lpips.cache_clear()
    monkeypatch.setattr(metrics, "find_spec", lambda package: package == "lpips" or None)
    monkeypatch.setattr(metrics, "import_module", lambda name: SimpleNamespace(LPIPS=LPIPS))
    metric, origin = metrics.lpips()
    metrics.lpips.cache_clear()
    assert metric is not None
    assert origin.startswith("LPIPS is that of lpips")
    pictures = np.zeros((2, 8, 4, 3), np.float32)
    pictures[1, 5, 3, 2] = 1  # in the blue channel
    assert metric(pictures, np.zeros_like(pictures)).tolist() == [0, 2]
