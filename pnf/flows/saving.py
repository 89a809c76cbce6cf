"""Saving and loading of flows without pickle: weights as safetensors, the constructor's arguments as JSON."""

import math
import os
import zlib
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pnf import hub, pretrained
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
        files = self._files()
        folder.mkdir(parents=True, exist_ok=True)
        replace_files({folder / name: content for name, content in files.items()})

    def push_to_hub(
        self,
        repo_id: str,
        *,
        run: str | os.PathLike[str] | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a flow of pnf",
    ) -> str:
        """Upload the flow to the Hugging Face Hub, with a model card unless the repository has one.

        Args:
            repo_id: the name of the repository, ``owner/name``. It is created if it is missing.
            run: the folder of the run that trained the flow. Its settings go along, and they and the result of
                ``pnf evaluate`` are in the card.
            private: whether a new repository is private; by default as its owner has set it.
            token: a token that may write; by default that of ``hf auth login``.
            revision: the branch, created if it is missing; by default the main one.
            commit_message: the message of the commit.

        Returns:
            The address of the commit.

        Raises:
            ImportError: ``huggingface_hub`` is not installed.
            FileNotFoundError, ValueError: the folder holds no run or that of another flow, or the name is none of a
                repository.
            PermissionError: the token may not write there.
            ConnectionError: the hub cannot be reached.
        """
        trained = None if run is None else hub.Run.read(Path(run))
        config = {"model": type(self).__name__, **self.config()}
        if trained is not None:
            trained.check(config)
        card = partial(hub.model_card, config=config, parameters=sum(p.numel() for p in self.parameters()), run=trained)
        files = {**self._files(), **(trained.files() if trained else {})}
        return hub.upload(repo_id, files, card, private=private, token=token, revision=revision, message=commit_message)

    def _files(self) -> dict[str, bytes]:
        """The content of both files, made before either is written, so that they always match."""
        config = json_bytes({"format": FORMAT, "model": type(self).__name__, **self.config()})
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        return {CONFIG_NAME: config, WEIGHTS_NAME: save(state, {CHECKSUM: _checksum(state)})}

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> Self:
        """Load the flow that :meth:`save_pretrained` or :meth:`push_to_hub` wrote, in evaluation mode.

        Args:
            path: its folder; if there is none, the name of a model that comes with pnf, ``"fashion-mnist"``, or of a
                repository on the Hugging Face Hub, ``"owner/name"``.
            device: where its parameters are to be.
            revision: the branch, tag or commit of a repository; by default the newest of its main branch.
            token: a token that may read the repository; by default that of ``hf auth login``.

        Raises:
            FileNotFoundError: there is no such folder, model or repository, or it lacks one of the files.
            ValueError: a file is damaged, belongs to another model, or was written by a newer pnf.
            PermissionError, ConnectionError: the repository may not be read, or the hub cannot be reached.
        """
        folder = Path(path)
        if not folder.exists():
            if str(path) in pretrained.names():
                folder = pretrained.folder(str(path)) / "model"
            elif hub.is_name(path):
                folder = hub.download(str(path), [CONFIG_NAME, WEIGHTS_NAME], revision=revision, token=token)
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
