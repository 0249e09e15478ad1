"""Attention dealt by heads is the attention over gathered keys and values, whatever does not divide."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from parallel_helpers import predictions, relative, smaller_unet
from test_slabs import normal, on_each, slabs

from distrijax import Parallel
from distrijax.nn.attention import attend
from distrijax.nn.exchange import tokens
from distrijax.parallel.answers import heads as module
from distrijax.parallel.answers.heads import Deal
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.slab import Slab
from distrijax.parallel.transport import MESH


@pytest.mark.parametrize(
    ("devices", "height", "batch", "heads", "shared"),
    [
        (4, 12, 2, 2, (4, 1)),  # a head for each device
        (2, 6, 1, 6, (2, 1)),
        (6, 11, 2, 2, (2, 3)),  # three devices divide the queries of two heads; 10 queries are not three equal parts
        (3, 7, 1, 2, (1, 3)),  # no device has heads of its own
        (5, 6, 1, 5, (5, 1)),  # two devices have nothing but padding
    ],
)
def test_dealt_attention(devices: int, height: int, batch: int, heads: int, shared: tuple[int, int]) -> None:
    layout, width, channels = SlabLayout(height, devices), 5, 4 * heads
    slab, whole = Slab(layout, MESH), [normal(batch, height, width, channels, seed=seed) for seed in range(3)]

    def dealt(*parts: Array) -> Array:
        q, k, v = (x.transpose(1, 2, 0, 3) for x in parts)  # [h, W, B, C]
        deal = Deal.of(q.nbytes, batch * heads, devices)
        assert (deal.groups, deal.parts) == shared
        return deal.attend(q, tokens(k), tokens(v), slab)

    got = on_each(dealt, *(slabs(layout, x, fill=50.0) for x in whole))  # [N, h, W, B, C]
    got = np.asarray(got).reshape(layout.padded_height, *got.shape[2:])[:height]
    q, k, v = (jnp.asarray(x).transpose(1, 2, 0, 3) for x in whole)
    np.testing.assert_allclose(got, attend(q, tokens(k), tokens(v), heads), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "devices", "branches", "pays"),
    [
        (1024, 8, 2, [False, False]),
        (1024, 4, 1, [False, False]),
        (2048, 8, 2, [True, True]),
        (2048, 4, 1, [False, False]),
        (3840, 8, 2, [True, True]),
        (3840, 4, 1, [False, False]),
        (3840, 8, 1, [True, True]),
        (3840, 2, 1, [False, False]),
        (3840, 3, 1, [False, False]),  # heads do not divide: the queries would travel on top
    ],
)
def test_when_it_pays(size: int, devices: int, branches: int, pays: list[bool]) -> None:
    """The layers of SDXL: 10 heads on a 16th of the pixels' rows and columns, and 20 on a 32nd, of 64 channels each."""
    got = []
    for heads, scale in ((10, 16), (20, 32)):
        side = size // scale
        own = side // devices * side * branches * 64 * heads * 2
        got.append(Deal.of(own, branches * heads, devices).pays)
    assert got == pays


@pytest.mark.parametrize(("patch", "size"), [(3, (9, 5)), (4, (13, 6))])
def test_predictions_are_those_of_one_device(
    patch: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECOND_WAIT", -1e18)  # these tokens are too few for it to pay
    parallel = Parallel(patch=patch, mode="full_sync", emulate=patch == 4)
    error = relative(*(predictions(smaller_unet(), p, size)[0] for p in (parallel, Parallel())))
    assert error <= 1e-5
