"""Noise against torch's own CPU generator."""

import numpy as np
import pytest
import torch

from distrijax.errors import DistrijaxError
from distrijax.sampling.noise import KeyGenerator, TorchGenerator, randn

pytestmark = pytest.mark.fast

# torch's vectorised logarithm, sine and cosine are off by up to 3 ulp (measured over 12 million numbers: 4.8e-7); its
# scalar ones, used on a processor without AVX2, round the angle differently (2.4e-6)
TOLERANCE = 3e-6

# below, at and above 16, where the algorithm changes; multiples of 16 and not; pairs split between draws; latents
SHAPES = [(1,), (3,), (16,), (2,), (15,), (17,), (31,), (1, 4, 5, 7), (), (0,), (5,), (2, 4, 16, 24), (1000,), (1,)]


def torch_generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1, 2**32 + 5, 2**63 + 7, 2**64 - 1, -1, -2, -(2**63)])
def test_draws_follow_torch(seed: int) -> None:
    theirs, ours = torch_generator(seed), TorchGenerator(seed)
    for shape in SHAPES:
        expected, got = torch.randn(shape, generator=theirs).numpy(), ours.randn(shape)
        assert got.shape == shape
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("count", range(1, 50))
def test_every_size_around_the_threshold(count: int) -> None:
    """Also how many outputs of the twister each size uses up: the second draw would differ."""
    for dtype in ("float32", "float16", "bfloat16"):
        theirs, ours = torch_generator(count), TorchGenerator(count)
        for _ in range(2):
            expected = torch.randn(count, generator=theirs, dtype=getattr(torch, dtype)).float().numpy()
            got = ours.randn((count,), dtype).astype(np.float32)
            # half precision: the float32 values differ by rounding, which may tip them to the neighbour
            scale = {"float32": TOLERANCE, "float16": 2**-9, "bfloat16": 2**-6}[dtype]
            np.testing.assert_allclose(got, expected, rtol=0, atol=scale)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_latents(dtype: str) -> None:
    theirs, ours = torch_generator(3), TorchGenerator(3)
    for shape in [(1, 4, 64, 64), (3,), (1001,), (7,), (1, 4, 64, 64)]:
        expected = torch.randn(shape, generator=theirs, dtype=getattr(torch, dtype)).float().numpy()
        got = ours.randn(shape, dtype)
        assert str(got.dtype) == dtype
        assert np.mean(got.astype(np.float32) != expected) < 1e-3


def test_latents_of_full_size() -> None:
    ours = TorchGenerator(7).randn((2, 4, 128, 128))
    expected = torch.randn((2, 4, 128, 128), generator=torch_generator(7)).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)


def test_a_batch_from_one_generator_or_one_for_each() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    shape = (3, 4, 6, 6)
    for seeds in ([5], [5, 6, 7]):
        expected = randn_tensor(shape, generator=[torch_generator(seed) for seed in seeds]).numpy()
        got = randn([TorchGenerator(seed) for seed in seeds], shape)
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)
    with pytest.raises(DistrijaxError, match="2 generators for a batch of 3"):
        randn([TorchGenerator(0), TorchGenerator(1)], shape)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seeds_that_torch_refuses(seed: int) -> None:
    with pytest.raises(ValueError, match="Overflow"):
        torch_generator(seed)
    with pytest.raises(DistrijaxError, match=str(abs(seed))):
        TorchGenerator(seed)


@pytest.mark.parametrize("seed", [1.5, "1", None])
def test_seeds_that_are_no_whole_numbers(seed: object) -> None:
    with pytest.raises(DistrijaxError, match="whole number"):
        TorchGenerator(seed)  # type: ignore[arg-type]


def test_a_numpy_integer_is_a_seed() -> None:
    np.testing.assert_array_equal(TorchGenerator(np.int64(9)).randn((20,)), TorchGenerator(9).randn((20,)))


def test_another_dtype_is_refused() -> None:
    with pytest.raises(DistrijaxError, match="float64 is not supported"):
        TorchGenerator(0).randn((4,), np.float64)


def test_key_generator():
    """JAX's own numbers: normal, new at each draw, the same for the same seed, and of all 64 bits of it."""
    first, second = (KeyGenerator(7).randn((4, 64, 64)) for _ in range(2))
    assert np.array_equal(first, second)
    assert abs(first.mean()) < 0.03
    assert abs(first.std() - 1) < 0.03
    generator = KeyGenerator(7)
    assert np.array_equal(generator.randn((4, 64, 64)), first)
    assert not np.array_equal(generator.randn((4, 64, 64)), first)
    assert not np.array_equal(KeyGenerator(7 + 2**40).randn((4, 64, 64)), first)
    assert KeyGenerator(-1).randn((3,), np.float16).dtype == np.float16
    with pytest.raises(DistrijaxError, match="seed must be from"):
        KeyGenerator(2**64)
