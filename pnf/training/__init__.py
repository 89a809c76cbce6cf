"""Training runs: settings, stages, the loop, checkpoints, processes."""

import importlib
from typing import TYPE_CHECKING, Any

from pnf.training.batches import seeded as seeded
from pnf.training.build import Flow as Flow
from pnf.training.config import PRESETS as PRESETS
from pnf.training.config import Interrupted as Interrupted
from pnf.training.config import RunConfig as RunConfig
from pnf.training.config import RunError as RunError
from pnf.training.config import preset_config as preset_config
from pnf.training.hardware import exact_arithmetic as exact_arithmetic
from pnf.training.hardware import tensor_float_32 as tensor_float_32

if TYPE_CHECKING:
    from pnf.training.join_stages import join as join
    from pnf.training.trainer import train as train


def __getattr__(name: str) -> Any:
    # Imported on first use: they need Lightning, which takes longer to import than all else.
    if name == "join":
        return importlib.import_module("pnf.training.join_stages").join
    if name == "train":
        return importlib.import_module("pnf.training.trainer").train
    raise AttributeError(f"module 'pnf.training' has no attribute {name!r}")
