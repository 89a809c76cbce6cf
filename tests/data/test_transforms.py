from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pnf.data import dequantize, resize


def naive_weights(old: int, new: int, antialias: bool) -> np.ndarray:
    """[new, old]: triangles around half-integer centres, as wide as a new pixel when shrinking with antialiasing."""
    scale = old / new
    width = max(scale, 1.0) if antialias else 1.0
    weights = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * scale - 0.5
        for j in range(math.floor(centre - width), math.ceil(centre + width) + 1):
            weight = max(0.0, 1 - abs(j - centre) / width)
            if antialias:
                weights[i, j if 0 <= j < old else 0] += weight if 0 <= j < old else 0.0
            else:
                weights[i, min(max(j, 0), old - 1)] += weight
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [((28, 28), (32, 32)), ((5, 7), (11, 8)), ((28, 28), (8, 8)), ((148, 148), (64, 64)), ((9, 6), (4, 13))],
)
def test_resize_is_the_bilinear_formula(old: tuple[int, int], new: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (3, 2, *old), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    antialias = new[0] < old[0] or new[1] < old[1]
    rows, columns = naive_weights(old[0], new[0], antialias), naive_weights(old[1], new[1], antialias)
    wanted = rows @ pixels.double().numpy() @ columns.T
    resized = resize(pixels, new)
    assert resized.dtype == torch.uint8
    assert np.abs(resized.double().numpy() - wanted).max() <= 0.5 + 1e-4


def test_resize_of_one_number_is_square() -> None:
    assert resize(torch.zeros(2, 3, 4, 6, dtype=torch.uint8), 5).shape == (2, 3, 5, 5)


def test_resize_keeps_what_fits_already() -> None:
    pixels = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
    assert resize(pixels, (4, 6)) is pixels


def test_resize_keeps_flat_images() -> None:
    pixels = torch.full((1, 1, 28, 28), 255, dtype=torch.uint8)
    assert (resize(pixels, 32) == 255).all()
    assert (resize(pixels, 5) == 255).all()


def test_resize_in_chunks_is_resize_of_each() -> None:
    pixels = torch.randint(0, 256, (9, 1, 512, 1024), dtype=torch.uint8)
    resized = resize(pixels, 16)
    assert torch.equal(resized, torch.cat([resize(image[None], 16) for image in pixels]))


def test_resize_of_nothing() -> None:
    assert resize(torch.zeros(0, 1, 4, 4, dtype=torch.uint8), 8).shape == (0, 1, 8, 8)


def test_resize_errors() -> None:
    pixels = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"resize: pixels must be torch.uint8, got torch.float32"):
        resize(pixels.float(), 8)
    with pytest.raises(ValueError, match=r"resize: pixels must be \[N, C, H, W\], got \[1, 4, 4\]"):
        resize(pixels[0], 8)
    with pytest.raises(ValueError, match=r"resize: size must be at least 1, got \(8, 0\)"):
        resize(pixels, (8, 0))
    for size in (8.0, (8,), True, "8"):
        with pytest.raises(TypeError, match=r"resize: size must be an int or \(height, width\), got"):
            resize(pixels, size)  # type: ignore[arg-type]


def test_dequantize_is_reproducible_by_seed() -> None:
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    first, second, other = (dequantize(pixels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_dequantize_follows_the_global_seed() -> None:
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = dequantize(pixels)
        torch.manual_seed(3)
        assert torch.equal(first, dequantize(pixels))


def test_dequantize_adds_uniform_noise_within_the_level() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(2000)
    x = dequantize(pixels, torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32
    assert torch.equal((x * 256).floor(), pixels.float())
    residual = np.sort((x.double() * 256 - pixels).numpy())
    steps = np.arange(1, len(residual) + 1) / len(residual)
    # Kolmogorov's distance; 1.95 / sqrt(n) is exceeded with probability 0.001, and the seed is fixed.
    assert np.abs(residual - steps).max() < 1.95 / math.sqrt(len(residual))


def test_dequantize_stays_below_the_next_level_when_the_sum_rounds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 1 - 2.0**-24
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, largest))
    pixels = torch.arange(256, dtype=torch.uint8)
    assert (pixels.float() + largest == pixels.float() + 1)[1:].all()
    x = dequantize(pixels)
    assert x.max() < 1
    assert torch.equal((x * 256).floor(), pixels.float())


def test_dequantize_takes_bytes_only() -> None:
    with pytest.raises(TypeError, match=r"dequantize: pixels must be torch.uint8, got torch.int64"):
        dequantize(torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_dtype_has_no_say(dtype: torch.dtype) -> None:
    pixels = torch.arange(192, dtype=torch.uint8).reshape(1, 3, 8, 8)
    wanted = dequantize(pixels, torch.Generator().manual_seed(0)), resize(pixels, 5)
    torch.set_default_dtype(dtype)
    try:
        found = dequantize(pixels, torch.Generator().manual_seed(0)), resize(pixels, 5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found[0].dtype == torch.float32
    assert all(map(torch.equal, found, wanted))
