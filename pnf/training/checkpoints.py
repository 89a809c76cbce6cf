"""Checkpoints that are written atomically and hold only tensors and numbers."""

import io
import zipfile
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from pnf.files import FORMAT, NewerFormatError, replace_file, without_format
from pnf.training.config import RunError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Fabric's checkpoint files, written by :func:`pnf.files.replace_file`.

    Fabric's own writer builds the file in the system's temporary folder. If that is another file system, the move is a
    copy, which a kill can cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ARG002
        content = io.BytesIO()
        torch.save({"format": FORMAT, **checkpoint}, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(Path(path), content.getvalue())

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        # A checkpoint is untrusted input.
        assert weights_only
        content = Path(path).read_bytes()
        # torch.load would accept a file with wrong checksums.
        if not _is_sound(content):
            raise RunError(f"{path} is damaged and was not loaded; remove it to train its stage anew")
        try:
            checkpoint = without_format(torch.load(io.BytesIO(content), map_location=map_location, weights_only=True))
            return cast("dict[str, Any]", checkpoint)
        except NewerFormatError as error:
            raise RunError(f"{path} {error}") from None
        except Exception:
            # A whole file that is no checkpoint of ours can raise any error in the reader.
            raise RunError(
                f"{path} holds more than tensors and numbers and was not loaded; remove it to train its stage anew"
            ) from None


def _is_sound(content: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # torch.save compresses nothing, so a compressed file may be a decompression bomb.
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            return stored and archive.testzip() is None
    except Exception:
        return False
