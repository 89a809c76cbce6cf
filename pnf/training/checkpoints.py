"""Checkpoints that are whole or not there, and that hold tensors and numbers only."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from pnf.flows.pretrained import replace_file
from pnf.training.config import RunError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Fabric's checkpoint files, written beside their place, to the disk, and then put in it.

    Fabric's own writer builds the file in the system's temporary folder; where that is another file system, moving it
    is a copy that a kill can cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ARG002
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(Path(path), content.getvalue())

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:  # noqa: ARG002
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"{path} is damaged and was not loaded ({reason}); remove it to train its stage anew") from None
