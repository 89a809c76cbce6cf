"""Checkpoints that are whole or not there, and that hold tensors and numbers only."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from pnf.files import replace_file
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

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        # Nobody may ask for more: a checkpoint is untrusted input.
        assert weights_only
        content = Path(path).read_bytes()
        # torch.load takes a file whose checksums are wrong.
        if not _is_sound(content):
            raise RunError(f"{path} is damaged and was not loaded; remove it to train its stage anew")
        try:
            checkpoint: dict[str, Any] = torch.load(io.BytesIO(content), map_location=map_location, weights_only=True)
            return checkpoint
        except Exception:
            # What is whole but no checkpoint of ours can make the reader fail in any way.
            raise RunError(
                f"{path} holds more than tensors and numbers and was not loaded; remove it to train its stage anew"
            ) from None


def _is_sound(content: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # torch.save compresses nothing, and a compressed file can be a bomb.
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            return stored and archive.testzip() is None
    except Exception:
        return False
