"""``pnf app`` in a process of its own, over HTTP: answers, mistakes, clicks at once, and what it lets nobody do."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'pnf[app]'")

import httpx

from pnf.app.models import Examples, Model, bits, draw, load_examples, upscale
from pnf.app.server import LARGEST_UPLOAD, is_loopback, listen, url
from pnf.evaluation.image_files import eight_bits
from pnf.training import RunError

Call = Callable[..., list[Any]]

# A machine may be busy.
get, post = (partial(request, timeout=100) for request in (httpx.get, httpx.post))


class RefusedError(Exception):
    """The page shows a message in place of an answer."""


@pytest.fixture(scope="module")
def call(served: str) -> Call:
    """Asks the page for an answer by the name of its function, as its own script does."""

    def ask(name: str, *values: Any) -> list[Any]:
        event = post(f"{served}/gradio_api/call/{name}", json={"data": values}).json()["event_id"]
        stream = get(f"{served}/gradio_api/call/{name}/{event}").text
        kind, data = stream.strip().split("\n\n")[-1].splitlines()[:2]
        content = json.loads(data.removeprefix("data: "))
        if kind == "event: complete":
            return content
        raise RefusedError(content["error"] if isinstance(content, dict) else content)

    return ask


@pytest.fixture(scope="module")
def examples(labelled: Model) -> Examples:
    return load_examples(labelled)


def upload(served: str, name: str, content: bytes) -> dict[str, Any]:
    response = post(f"{served}/gradio_api/upload", files={"files": (name, content)})
    assert response.status_code == 200, response.text
    return {"path": response.json()[0], "meta": {"_type": "gradio.FileData"}}


def sample(call: Call, count: int = 3, seed: int = 0, label: str = "each in turn") -> list[Any]:
    return [each for each in call("sample", count, seed, label, 1.0, 1.0, 1.0, 0.5) if each is not None]


def pixels(cells: list[dict[str, Any]], size: tuple[int, int] = (8, 8)) -> list[np.ndarray]:
    """The pictures of a gallery, at their own resolution again."""
    found = []
    for cell in cells:
        with Image.open(io.BytesIO(get(cell["image"]["url"]).content)) as image:
            assert (image.format, image.size) == ("PNG", (256, 256))
            found.append(np.asarray(image.convert("L"))[:: 256 // size[0], :: 256 // size[1]])
    return found


def levels(images: torch.Tensor) -> list[np.ndarray]:
    return [image[0].numpy() for image in eight_bits(images)]


def test_samples_are_the_models_own(call: Call, labelled: Model, realnvp: Model) -> None:
    first, second, grown, whole = sample(call, 3, 7, "Coat")
    np.testing.assert_array_equal(pixels(first), levels(draw(labelled, 3, [1.0] * 3, seed=7, label="Coat")))
    np.testing.assert_array_equal(pixels(second), levels(draw(realnvp, 3, [0.5], seed=7)))
    assert [cell["caption"] for cell in grown] == ["f0 · 4x4", "f1x · 4x8", "f1y · 8x8"]
    np.testing.assert_array_equal(pixels(grown)[-1], pixels(first)[0])
    assert [cell["caption"] for cell in whole] == ["f · 8x8"]


def test_clicks_at_once_get_each_their_own_answer(call: Call) -> None:
    alone = {seed: pixels(sample(call, 5, seed)[0]) for seed in range(3)}
    order = [*range(3)] * 2
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(lambda i: sample(call, 5, order[i])[0], range(len(order)))
        for seed, answer in zip(order, answers, strict=True):
            np.testing.assert_array_equal(pixels(answer), alone[seed])


def test_an_uploaded_picture_grows_stage_by_stage(call: Call, served: str, labelled: Model) -> None:
    small = torch.arange(0, 160, 10, dtype=torch.uint8).view(1, 1, 4, 4)
    content = io.BytesIO()
    Image.fromarray(small[0, 0].numpy()).save(content, "PNG")
    file = upload(served, "small.png", content.getvalue())
    (answer,) = call("upscale", file, 0, "4x4", 2, 3, "Bag", 0.5, 0.9)
    cells = answer["value"]
    assert [cell["caption"] for cell in cells] == ["from 4x4", "f1x · 4x8", "f1y · 8x8"] * 2
    assert answer["columns"] == 3
    rows = upscale(labelled, small, 0, [0.0, 0.5, 0.9], draws=2, seed=3, label="Bag")
    np.testing.assert_array_equal(pixels(cells[:1], (4, 4))[0], small[0, 0].numpy())
    np.testing.assert_array_equal(pixels(cells[2::3]), [levels(row[-1][None])[0] for row in rows])


def test_an_example_grows_beside_the_picture_itself(call: Call, examples: Examples) -> None:
    (answer,) = call("upscale", None, 2, "4x8", 1, 0, "most probable", 0.0, 0.0)
    assert [cell["caption"] for cell in answer["value"]] == ["from 4x8", "f1y · 8x8", "picture"]
    np.testing.assert_array_equal(pixels(answer["value"])[-1], examples.images.pixels[2, 0].numpy())


def test_the_way_between_two_pictures(call: Call, examples: Examples) -> None:
    ways = call("between", None, 0, None, 1, "Coat", "Coat", 4)
    assert len(ways) == 2
    for way, name in zip(ways, ("Coat ", ""), strict=True):
        assert [cell["caption"] for cell in way["value"]] == [f"{name}{percent}%" for percent in (0, 33, 67, 100)]
        ends = np.stack(pixels(way["value"]))[[0, -1]].astype(int)
        assert np.abs(ends - examples.images.pixels[:2, 0].numpy()).max() <= 1


def test_bits_by_stage(call: Call, labelled: Model, realnvp: Model, examples: Examples) -> None:
    chart, table, guesses = call("bits", None, 1)
    assert chart["type"] == "matplotlib"
    assert table["headers"] == ["model", "stage", "resolution", "this picture", "usual"]
    assert [row[1] for row in table["data"]] == ["f0", "f1x", "f1y", "sum", "f", "sum"]
    found = [bits(model, examples.images.pixels[1:2]) for model in (labelled, realnvp)]
    for row, each in zip((3, 5), found, strict=True):
        assert table["data"][row][3] == f"{each.evaluation.bits_per_dim:.3f}"
    probabilities = found[0].probabilities
    assert probabilities is not None
    assert guesses["label"] == max(probabilities, key=lambda name: probabilities[name])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.png", b"no image", r"^notes.png: wanted an image, got a file that Pillow refuses"),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", r"^script.png: wanted an image"),
        ("deep.png", b"P5 2 2 65535\n" + bytes(8), r"^deep.png: wanted 8 bits a channel"),
        ("notes.txt", b"no image", r"^Invalid file type"),
    ],
)
def test_a_bad_file_is_refused_by_its_name(call: Call, served: str, name: str, content: bytes, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        call("bits", upload(served, name, content), 0)


def test_other_mistakes_are_told_too(call: Call) -> None:
    with pytest.raises(RefusedError, match=r"^there is no example 99$"):
        call("bits", None, 99)
    with pytest.raises(RefusedError, match=r"not in the list of choices"):
        sample(call, label="Hat")
    with pytest.raises(RefusedError, match=r"65 is greater than maximum value 64"):
        sample(call, count=65)


def test_an_empty_seed_is_zero(call: Call) -> None:
    (empty, *_), (zero, *_) = (call("sample", 2, seed, "Coat", 1.0, 1.0, 1.0, 1.0) for seed in (None, 0))
    np.testing.assert_array_equal(pixels(empty), pixels(zero))


def test_a_large_upload_is_refused(served: str) -> None:
    response = post(f"{served}/gradio_api/upload", files={"files": ("large.png", bytes(LARGEST_UPLOAD + 1))})
    assert response.status_code == 413


def test_no_other_file_is_given_or_read(call: Call, served: str, labelled_run: Path) -> None:
    secret = labelled_run / "run.json"
    assert get(f"{served}/gradio_api/file={secret}").status_code == 403
    with pytest.raises(RefusedError):
        call("bits", {"path": str(secret), "meta": {"_type": "gradio.FileData"}}, 0)


def test_other_names_for_this_machine_are_refused(served: str) -> None:
    port = served.rpartition(":")[2]
    for host, status in (("evil.example", 400), (f"evil.example:{port}", 400), (f"localhost:{port}", 200)):
        assert get(served, headers={"Host": host}).status_code == status


def test_the_page_asks_nothing_of_others(served: str) -> None:
    page = get(served)
    assert "connect-src 'self'" in page.headers["Content-Security-Policy"]
    config = get(f"{served}/config").json()
    assert config["analytics_enabled"] is False
    assert config["api_prefix"] == "/gradio_api"
    styles = get(f"{served}/theme.css").text
    assert "fonts.googleapis" not in page.text + styles


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org")),
    ],
)
def test_what_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_the_address_is_checked_first() -> None:
    with listen("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        assert url(opened, "127.0.0.1") == f"http://127.0.0.1:{port}"
        assert url(opened, "0.0.0.0") == f"http://{socket.gethostname()}:{port}"
        with pytest.raises(RunError, match=rf"port {port} is taken: choose another with --port, or any free one"):
            listen("127.0.0.1", port)
    with pytest.raises(RunError, match=r"^--host 203.0.113.1 --port 0: "):
        listen("203.0.113.1", 0)
    with pytest.raises(RunError, match=r"^--host nowhere.invalid --port 0: "):
        listen("nowhere.invalid", 0)
