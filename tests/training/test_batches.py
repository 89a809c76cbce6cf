from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pnf.data import Images
from pnf.training.batches import Batch, Batches, hold_out, seeded


def numbered(count: int) -> Images:
    """Images [count, 1, 1, 2] with their number in the pixels and as label: image 3 has the pixels 3 and 103."""
    numbers = torch.arange(count, dtype=torch.uint8)
    pixels = torch.stack([numbers, numbers + 100], 1).view(count, 1, 1, 2)
    return Images(pixels, "numbered", "train", numbers.long(), tuple(map(str, range(count))))


def numbers_of(batch: Batch) -> list[int]:
    """The numbers of the images of ``numbered`` in a batch, mirrored or not."""
    return [int(level) for level in (batch.x.amin((1, 2, 3)) * 256).floor()]


def mirrored(batch: Batch) -> list[bool]:
    return [bool(left > right) for left, right in batch.x.flatten(1)]


@pytest.mark.parametrize("flip", [False, True])
def test_a_batch_belongs_to_its_step_whatever_came_before(flip: bool) -> None:
    forward, fresh = (Batches(numbered(10), 4, seed=0, flip=flip) for _ in range(2))
    in_order = [forward(step) for step in range(12)]
    for step in (11, 3, 3, 7, 0):
        assert torch.equal(fresh(step).x, in_order[step].x)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 25, 64])
def test_every_image_comes_once_in_each_epoch(batch_size: int) -> None:
    batches = Batches(numbered(10), batch_size, seed=0, flip=False)
    drawn = [number for step in range(120 // batch_size + 1) for number in numbers_of(batches(step))]
    for epoch in range(12):
        assert sorted(drawn[10 * epoch : 10 * epoch + 10]) == list(range(10))


def test_each_epoch_has_an_order_of_its_own() -> None:
    batches = Batches(numbered(50), 50, seed=0, flip=False)
    orders = {tuple(numbers_of(batches(epoch))) for epoch in range(5)}
    assert len(orders) == 5


def test_the_seed_changes_order_and_noise_and_flips() -> None:
    first, second = (Batches(numbered(50), 50, seed=seed, flip=True)(0) for seed in (0, 1))
    assert numbers_of(first) != numbers_of(second)
    assert mirrored(first) != mirrored(second)
    assert not torch.isin(_noise(first), _noise(second)).any()


@pytest.mark.parametrize("flip", [False, True])
def test_labels_follow_their_images(flip: bool) -> None:
    batches = Batches(hold_out(numbered(60), 10, seed=0)[0], 64, seed=0, flip=flip)
    for batch in (batches(0), *batches(7).split(20)):
        assert batch.condition is not None
        assert batch.condition.tolist() == numbers_of(batch)


def test_noise_is_drawn_anew_at_each_step() -> None:
    batches = Batches(numbered(8), 8, seed=0, flip=False)
    assert not torch.isin(_noise(batches(0)), _noise(batches(1))).any()


def test_about_half_of_the_images_are_mirrored_if_asked() -> None:
    share = sum(mirrored(Batches(numbered(100), 1000, seed=0, flip=True)(0))) / 1000
    assert 0.4 < share < 0.6
    assert not any(mirrored(Batches(numbered(100), 1000, seed=0, flip=False)(0)))


def test_a_batch_is_dequantized_to_the_unit_interval() -> None:
    white = Images(torch.full((4, 3, 2, 2), 255, dtype=torch.uint8), "white", "train")
    batch, condition = Batches(white, 4, seed=0, flip=False)(0)
    assert condition is None
    assert batch.dtype == torch.float32
    assert batch.shape == (4, 3, 2, 2)
    assert 255 / 256 <= batch.min() < batch.max() <= 1


def test_hold_out_splits_by_the_seed() -> None:
    training, validation = hold_out(numbered(60), 20, seed=0)
    chosen = validation.pixels[:, 0, 0, 0].tolist()
    assert len(training) == 40
    assert sorted([*training.pixels[:, 0, 0, 0].tolist(), *chosen]) == list(range(60))
    assert hold_out(numbered(60), 20, seed=0)[1].pixels[:, 0, 0, 0].tolist() == chosen
    assert hold_out(numbered(60), 20, seed=1)[1].pixels[:, 0, 0, 0].tolist() != chosen


def test_hold_out_of_nothing() -> None:
    training, validation = hold_out(numbered(6), 0, seed=0)
    assert (len(training), len(validation)) == (6, 0)


def test_streams_of_different_keys_differ() -> None:
    keys = [(0, 1), (1, 1), (0, 2), (0, 1, 1), (1, 0, 1)]
    assert len({torch.rand(1, generator=seeded(*key)).item() for key in keys}) == len(keys)
    assert torch.equal(torch.rand(5, generator=seeded(3, 1)), torch.rand(5, generator=seeded(3, 1)))


def _noise(batch: Batch) -> Tensor:
    return (batch.x.double() * 256).frac()
