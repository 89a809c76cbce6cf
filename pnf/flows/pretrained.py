"""Saving and loading of flows: weights as safetensors, the constructor's arguments as JSON, no pickle."""

import json
import math
import os
import tempfile
import zlib
from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"

CHECKSUM = "crc32"
"""In the metadata of the weights; files without it are not checked."""

LARGEST_JSON = 2**20
"""Bytes; a hundred times what any configuration takes."""


class Pretrained(nn.Module):
    """A module that is saved as a folder with ``config.json`` and ``model.safetensors``."""

    @abstractmethod
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the configuration and the weights into the folder ``path``, which is made if it is missing.

        Each file is replaced as a whole: whoever reads it meanwhile sees the old or the new one.

        Raises:
            OSError: the folder cannot be written.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"model": type(self).__name__, **self.config()}
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        replace_json(folder / CONFIG_NAME, config)
        replace_file(folder / WEIGHTS_NAME, save(state, {CHECKSUM: _checksum(state)}))

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Self:
        """The flow that :meth:`save_pretrained` wrote into the folder ``path``, in evaluation mode.

        Raises:
            FileNotFoundError: the folder lacks one of the files.
            ValueError: a file is damaged, or belongs to another model.
        """
        folder = Path(path)
        config = read_config(folder)
        _require(folder, WEIGHTS_NAME)
        model = config.pop("model", None)
        if model != cls.__name__:
            raise ValueError(f"from_pretrained: {folder / CONFIG_NAME} is of a {model}, wanted a {cls.__name__}")
        state = _load_weights(folder / WEIGHTS_NAME)
        # Every coupling has more tensors than blocks: what is not in the file is never made.
        least = math.prod(n for key in ("num_couplings", "blocks") if isinstance(n := config.get(key), int) and n > 0)
        if least > len(state):
            raise ValueError(
                f"from_pretrained: {folder / CONFIG_NAME} is of a model with more than {least} tensors, and "
                f"{WEIGHTS_NAME} has {len(state)}"
            )
        try:
            # No weights are made: a stranger's sizes cost nothing until the file proves to have them.
            with torch.device("meta"):
                flow = cls(**config)
        except (OverflowError, RuntimeError, TypeError) as error:
            raise ValueError(f"from_pretrained: {folder / CONFIG_NAME} has wrong arguments: {error}") from error
        try:
            # Assigned, so that float64 stays float64; cloned, because the tensors may be the mapped file.
            flow.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"from_pretrained: {folder / WEIGHTS_NAME} does not fit its configuration: {error}"
            ) from error
        return flow.to(device).eval()


def _load_weights(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            told = (file.metadata() or {}).get(CHECKSUM)
    except SafetensorError as error:
        raise ValueError(f"from_pretrained: {path} is no safetensors file: {error}") from error
    if told is not None and told != _checksum(state):
        raise ValueError(f"from_pretrained: {path} is damaged: its checksum is not that of its tensors")
    return state


def _checksum(state: dict[str, Tensor]) -> str:
    """CRC-32 over the bytes of all tensors and their names, in the order of the names."""
    crc = 0
    for name in sorted(state):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(state[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all: to a temporary file beside it, to the disk, then in its place."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def replace_json(path: Path, document: object) -> None:
    """:func:`replace_file` by a JSON file."""
    replace_file(path, (json.dumps(document, indent=2) + "\n").encode())


def remove_unfinished(path: Path) -> None:
    """Remove what a kill in :func:`replace_file` left beside a file."""
    for unfinished in path.parent.glob(f".{path.name}.*"):
        unfinished.unlink(missing_ok=True)


def read_config(folder: Path) -> dict[str, Any]:
    """The constructor's arguments and the name of the model, as :meth:`Pretrained.save_pretrained` wrote them.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the file is damaged.
    """
    _require(folder, CONFIG_NAME)
    path = folder / CONFIG_NAME
    try:
        config = read_json(path)
    except ValueError as error:
        raise ValueError(f"from_pretrained: {path} is no JSON file: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"from_pretrained: {path} must hold a JSON object, got {type(config).__name__}")
    return config


def _require(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"from_pretrained: {folder} has no {name}: is it a folder of save_pretrained?")


def read_json(path: Path) -> object:
    """What is in a small JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, too large or too deep.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise ValueError(f"it has more than {LARGEST_JSON} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
