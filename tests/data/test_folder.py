from __future__ import annotations

import hashlib
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pnf.data import DataError, load, resize

Save = Callable[..., np.ndarray]


def falls_in_test(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10 == 0


def chw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def test_subfolders_are_splits(tmp_path: Path, save_image: Save) -> None:
    train = [save_image(f"train/{kind}/{i}.png", 6, 8, 3, seed=i) for i, kind in enumerate(["a", "a", "b"])]
    test = [save_image("test/0.png", 6, 8, 3, seed=7)]
    validation = [save_image("validation/0.bmp", 6, 8, 3, seed=8)]
    for split, arrays in (("train", train), ("test", test), ("validation", validation)):
        images = load(tmp_path, split)
        assert torch.equal(images.pixels, torch.stack([chw(array) for array in arrays]))
        assert (images.name, images.split) == (tmp_path.name, split)


def test_missing_subfolder(tmp_path: Path, save_image: Save) -> None:
    save_image("train/0.png", 4, 4)
    with pytest.raises(DataError, match="wanted the test split, got a set that has only train"):
        load(tmp_path, "test")


def test_split_by_name(tmp_path: Path, save_image: Save) -> None:
    names = [f"{i // 20}/{i:03d}.png" for i in range(60)]
    arrays = {name: save_image(name, 4, 4, seed=i) for i, name in enumerate(names)}
    for split in ("train", "test"):
        wanted = [arrays[name] for name in names if falls_in_test(name) == (split == "test")]
        assert wanted
        assert np.array_equal(load(tmp_path, split).pixels[:, 0].numpy(), np.stack(wanted))
    with pytest.raises(DataError, match="wanted the validation split, got a set that has only train, test"):
        load(tmp_path, "validation")


def test_split_without_images(tmp_path: Path, save_image: Save) -> None:
    name = next(f"{i}.png" for i in range(100) if not falls_in_test(f"{i}.png"))
    save_image(name, 4, 4)
    with pytest.raises(DataError, match="wanted images of the test split, got none; add images or a subfolder for it"):
        load(tmp_path, "test")


def test_grey_stays_grey_only_if_all_are(tmp_path: Path, save_image: Save) -> None:
    grey = save_image("train/0.png", 4, 5)
    save_image("test/0.png", 4, 5)
    assert np.array_equal(load(tmp_path).pixels[0, 0].numpy(), grey)
    save_image("test/1.png", 4, 5, 3)
    assert np.array_equal(load(tmp_path).pixels[0].numpy(), np.stack([grey] * 3))


def test_alpha_is_dropped(tmp_path: Path, save_image: Save) -> None:
    colour = save_image("train/0.png", 4, 5, 4)
    assert torch.equal(load(tmp_path).pixels[0], chw(colour[:, :, :3]))


def test_crop_and_resize(tmp_path: Path, save_image: Save) -> None:
    wide = save_image("train/0.png", 20, 31, 3)
    tall = save_image("train/1.webp", 24, 10, 3)
    small = save_image("train/2.png", 5, 5, 3)
    with Image.open(tmp_path / "train/1.webp") as image:
        tall = np.array(image)
    images = load(tmp_path, size=8)
    wanted = [chw(wide[:, 5:25]), chw(tall[7:17]), chw(small)]
    assert torch.equal(images.pixels, torch.cat([resize(image[None], 8) for image in wanted]))
    oblong = load(tmp_path, size=(10, 20), limit=1)
    assert torch.equal(oblong.pixels, resize(chw(wide[2:18])[None], (10, 20)))


def test_sizes_that_differ_need_a_size(tmp_path: Path, save_image: Save) -> None:
    save_image("train/0.png", 4, 5)
    save_image("train/1.png", 4, 6)
    with pytest.raises(DataError, match=r"1.png: wanted 5 x 4 pixels, as 0.png has, got 6 x 4; give a size"):
        load(tmp_path)


def test_hidden_and_other_files_are_passed_over(tmp_path: Path, save_image: Save) -> None:
    save_image("train/0.png", 4, 4)
    save_image("train/._1.png", 4, 4)
    save_image("train/.thumbnails/2.png", 4, 4)
    (tmp_path / "train" / "notes.txt").write_text("notes")
    (tmp_path / "train" / "folder.png").mkdir()
    assert len(load(tmp_path)) == 1


def test_many_images_keep_their_order(tmp_path: Path, save_image: Save) -> None:
    arrays = [save_image(f"train/{i:03d}.png", 3, 3, seed=i) for i in range(300)]
    assert np.array_equal(load(tmp_path).pixels[:, 0].numpy(), np.stack(arrays))
    assert np.array_equal(load(tmp_path, limit=7).pixels[:, 0].numpy(), np.stack(arrays[:7]))


def test_pytorch_keeps_its_threads(tmp_path: Path, save_image: Save) -> None:
    save_image("train/0.png", 4, 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        load(tmp_path, size=2)
        assert torch.get_num_threads() == threads + 1
        (tmp_path / "train" / "0.png").write_bytes((tmp_path / "train" / "0.png").read_bytes()[:50])
        with pytest.raises(DataError, match="refuses"):
            load(tmp_path, size=2)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"wanted images \(.*\) or a known data set, got neither; see docs/data.md"):
        load(tmp_path)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + bytes(4) + b"IDAT"
    )


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no image", id="text"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n", id="PostScript"),
        pytest.param(b"GIF89a" + bytes(20), id="another format"),
    ],
)
def test_broken_images_are_named(tmp_path: Path, save_image: Save, content: bytes) -> None:
    save_image("train/0.png", 4, 4)
    (tmp_path / "train" / "1.png").write_bytes(content)
    with pytest.raises(
        DataError, match=r"train/1.png: wanted an image, got a file that Pillow refuses .*remove or repl"
    ):
        load(tmp_path)


def test_truncated_image_is_named(tmp_path: Path, save_image: Save) -> None:
    for i in range(5):
        save_image(f"train/{i}.png", 40, 40, 3, seed=i)
    path = tmp_path / "train" / "3.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"train/3.png: wanted an image, got a file that Pillow refuses .*truncated"):
        load(tmp_path)


@pytest.mark.parametrize("edge", [10_000, 30_000])
def test_image_bomb(tmp_path: Path, edge: int) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.png").write_bytes(png_header(edge, edge))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(DataError, match=r"0.png: wanted (at most 89478485 pixels|an image, .*decompression bomb)"):
            load(tmp_path)


def test_deep_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    Image.fromarray(np.full((4, 4), 1000, dtype=np.uint16)).save(tmp_path / "train" / "0.png")
    with pytest.raises(DataError, match=r"0.png: wanted 8 bits a channel, got mode I;16; convert it"):
        load(tmp_path)


def png16(colour: int, channels: int) -> bytes:
    """A PNG of 4 x 4 pixels with 16 bits a channel, which Pillow cannot write."""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(4 * (1 + 4 * 2 * channels)))),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff16(channels: int) -> bytes:
    """A TIFF of 16 bits a channel of 2 x 2 pixels."""
    data, offset = bytes(2 * 2 * 2 * channels), 8 + 2 + 12 * 9 + 4
    tags = [
        (256, 1, 2),
        (257, 1, 2),
        (258, channels, offset),
        (259, 1, 1),
        (262, 1, 2),
        (273, 1, offset + 2 * channels),
    ]
    tags += [(277, 1, channels), (278, 1, 2), (279, 1, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 3, count, value) for tag, count, value in tags)
    return b"II*\0\x08\0\0\0\x09\0" + entries + bytes(4) + struct.pack(f"<{channels}H", *[16] * channels) + data


@pytest.mark.parametrize(
    ("name", "content", "mode"),
    [
        ("0.png", png16(0, 1), "I;16"),
        ("0.png", png16(4, 2), "LA;16B"),
        ("0.png", png16(2, 3), "RGB;16B"),
        ("0.png", png16(6, 4), "RGBA;16B"),
        ("0.tif", tiff16(3), "RGB;16L"),
        ("0.tif", tiff16(4), "RGBA;16L"),
        ("0.ppm", b"P6 2 2 65535\n" + bytes(24), "RGB up to 65535"),
        ("0.ppm", b"P3 2 2 1023\n" + b"1 " * 12, "RGB up to 1023"),
        ("0.pgm", b"P5 2 2 65535\n" + bytes(8), "I"),
    ],
)
def test_images_of_more_than_8_bits_are_refused(tmp_path: Path, name: str, content: bytes, mode: str) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: wanted 8 bits a channel, got mode {mode}; convert it"):
        load(tmp_path)


def test_images_of_less_than_8_bits_are_read(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.ppm").write_bytes(b"P6 2 2 15\n" + bytes(12))
    # Sixteen bits a pixel, five a channel.
    header = (
        b"BM" + struct.pack("<IHHI", 54 + 8, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 0, 8, 0, 0, 0, 0)
    )
    (tmp_path / "train" / "1.bmp").write_bytes(header + bytes(8))
    assert load(tmp_path).pixels.shape == (2, 3, 2, 2)


@pytest.mark.parametrize("transparency", [None, 0, b"\x00\x80\xff"])
def test_palettes_of_grey_are_grey(tmp_path: Path, save_image: Save, transparency: object) -> None:
    grey = save_image("train/0.png", 6, 5)
    palette = Image.fromarray(grey // 16)
    palette.putpalette([*np.repeat(np.arange(0, 256, 16), 3).tolist(), 255, 0, 0])  # and a colour of no pixel
    palette.save(tmp_path / "train" / "1.png", **({} if transparency is None else {"transparency": transparency}))
    pixels = load(tmp_path).pixels
    assert np.array_equal(pixels[:, 0].numpy(), np.stack([grey, grey // 16 * 16]))
    coloured = palette.copy()
    coloured.putpixel((1, 1), 16)
    coloured.save(tmp_path / "train" / "1.png")
    pixels = load(tmp_path).pixels
    assert np.array_equal(pixels[0].numpy(), np.stack([grey] * 3))
    assert pixels[1, :, 1, 1].tolist() == [255, 0, 0]


def test_grey_pixels_of_a_colour_file_stay_colour(tmp_path: Path, save_image: Save) -> None:
    grey = save_image("0.png", 4, 4)
    (tmp_path / "train").mkdir()
    Image.fromarray(np.stack([grey] * 3, 2)).save(tmp_path / "train" / "1.png")
    assert load(tmp_path / "train", "train" if not falls_in_test("1.png") else "test").shape == (3, 4, 4)


def test_without_pillow(tmp_path: Path, save_image: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image("train/0.png", 4, 4)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"reading image files needs Pillow: pip install 'pnf\[train\]'"):
        load(tmp_path)


def test_the_number_of_cores_has_no_say(tmp_path: Path, save_image: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(12):
        save_image(f"{i}.png", 9, 7 + i, 3, seed=i)
    found = []
    for cores in (1, 3, 8):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        found.append(load(tmp_path, "train", 5).pixels)
    assert found[0].equal(found[1])
    assert found[0].equal(found[2])
