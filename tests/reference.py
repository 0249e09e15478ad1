"""The reference implementations on torch: their weights in our models, their outputs as NumPy."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from distrijax.checkpoint import Component


def load_from_torch(
    component: str, config: Mapping[str, Any], reference: torch.nn.Module, dtype: Any = jnp.float32
) -> Any:
    """Our module with the weights of `reference`. component: `unet`, `vae`, `text_encoder` or `text_encoder_2`."""
    plan = Component.from_json(component, dict(config), "test")
    table, arrays = plan.table(), {}
    for name, tensor in reference.state_dict().items():
        entry = table.to_ours(name)
        assert entry is not None, name
        arrays[entry.name] = jnp.asarray(tensor.detach().float().numpy().transpose(entry.axes), dtype)
    return plan.build(arrays, dtype)


def random_weights(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights unlike the initial ones: torch starts norms at 1 and 0, which would hide a wrong scale or bias."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim == 1:
                p.copy_(0.2 * torch.randn(p.shape, generator=generator) + (1.0 if name.endswith("weight") else 0.0))
    return module.eval()


def to_torch(x: np.ndarray) -> torch.Tensor:
    """[B, H, W, C] -> [B, C, H, W] for pictures; other ranks as they are."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x))


def to_numpy(x: torch.Tensor) -> np.ndarray:
    """[B, C, H, W] -> [B, H, W, C] for pictures; other ranks as they are."""
    array = x.detach().float().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def error(ours: Any, reference: np.ndarray) -> float:
    """Largest absolute difference, in units of the reference's standard deviation; printed, for `pytest -rP`."""
    ours = np.asarray(ours, np.float32)
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    largest = float(np.abs(ours - reference).max() / reference.std())
    print(f"largest difference {largest:.1e} of the deviation, {reference.std():.2f}")
    return largest
