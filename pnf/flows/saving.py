"""Saving and loading of flows without pickle: weights as safetensors, the constructor's arguments as JSON."""

import math
import os
import zlib
from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pnf import pretrained
from pnf.files import FORMAT, NewerFormatError, json_bytes, read_json, replace_files, without_format

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"

CHECKSUM = "crc32"
"""The key of the checksum in the metadata of the weights. Files without it are not checked."""


class Pretrained(nn.Module):
    """A module that can be saved as a folder with ``config.json`` and ``model.safetensors``."""

    @abstractmethod
    def config(self) -> dict[str, object]:
        """The constructor's arguments."""

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the configuration and the weights into the folder ``path``, which is created if it is missing.

        Each file is replaced as a whole: a reader sees the old or the new one. If one of them cannot be written, both
        old ones stay.

        Raises:
            OSError: the folder cannot be written.
        """
        folder = Path(path)
        config = json_bytes({"format": FORMAT, "model": type(self).__name__, **self.config()})
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        # Both are made before either is written, so that configuration and weights always match.
        weights = save(state, {CHECKSUM: _checksum(state)})
        folder.mkdir(parents=True, exist_ok=True)
        replace_files({folder / CONFIG_NAME: config, folder / WEIGHTS_NAME: weights})

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Self:
        """Load the flow that :meth:`save_pretrained` wrote, in evaluation mode.

        Args:
            path: its folder, or the name of a model that comes with pnf: ``"fashion-mnist"``.
            device: where its parameters are to be.

        Raises:
            FileNotFoundError: the folder lacks one of the files.
            ValueError: a file is damaged, belongs to another model, or was written by a newer pnf.
        """
        folder = Path(path)
        if not folder.exists() and str(path) in pretrained.names():
            folder = pretrained.folder(str(path)) / "model"
        config = read_config(folder)
        _require(folder, WEIGHTS_NAME)
        model = config.pop("model", None)
        if model != cls.__name__:
            raise ValueError(f"from_pretrained: {folder / CONFIG_NAME} is of a {model}, wanted a {cls.__name__}")
        state = _load_weights(folder / WEIGHTS_NAME)
        # Every coupling has more tensors than blocks, so larger numbers than the file can hold are refused here.
        least = math.prod(n for key in ("num_couplings", "blocks") if isinstance(n := config.get(key), int) and n > 0)
        if least > len(state):
            raise ValueError(
                f"from_pretrained: {folder / CONFIG_NAME} is of a model with more than {least} tensors, and "
                f"{WEIGHTS_NAME} has {len(state)}"
            )
        try:
            # Without memory: untrusted sizes cost nothing until the file proves to have them.
            with torch.device("meta"):
                flow = cls(**config)
        except (OverflowError, RuntimeError, TypeError) as error:
            raise ValueError(f"from_pretrained: {folder / CONFIG_NAME} has wrong arguments: {error}") from error
        try:
            # Assigned, to keep float64. Cloned, because the tensors may be memory of the mapped file.
            flow.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"from_pretrained: {folder / WEIGHTS_NAME} does not fit its configuration: {error}"
            ) from error
        return flow.to(device).eval()


def _load_weights(path: Path) -> dict[str, Tensor]:
    try:
        # By its handle, since safetensors only takes paths in UTF-8.
        with path.open("rb") as opened, safe_open(f"/dev/fd/{opened.fileno()}", "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            stored = (file.metadata() or {}).get(CHECKSUM)
    except SafetensorError as error:
        raise ValueError(f"from_pretrained: {path} is no safetensors file: {error}") from error
    if stored is not None and stored != _checksum(state):
        raise ValueError(f"from_pretrained: {path} is damaged: its checksum is not that of its tensors")
    return state


def _checksum(state: dict[str, Tensor]) -> str:
    """CRC-32 over the bytes of all tensors and their names, in the order of the names."""
    crc = 0
    for name in sorted(state):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(state[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def read_config(folder: Path) -> dict[str, Any]:
    """Read the constructor's arguments and the name of the model from :meth:`Pretrained.save_pretrained`'s file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, or was written by a newer pnf.
    """
    _require(folder, CONFIG_NAME)
    path = folder / CONFIG_NAME
    try:
        config = without_format(read_json(path))
    except NewerFormatError as error:
        raise ValueError(f"from_pretrained: {path} {error}") from None
    except ValueError as error:
        raise ValueError(f"from_pretrained: {path} is no JSON file: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"from_pretrained: {path} must hold a JSON object, got {type(config).__name__}")
    return config


def _require(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        models = "" if folder.exists() else f" Models that come with pnf: {', '.join(pretrained.names())}."
        raise FileNotFoundError(f"from_pretrained: {folder} has no {name}: is it a folder of save_pretrained?{models}")
