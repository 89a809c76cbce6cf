"""Training runs: settings, stages, the loop, checkpoints, processes."""

from pnf.training.batches import seeded as seeded
from pnf.training.build import Flow as Flow
from pnf.training.config import PRESETS as PRESETS
from pnf.training.config import RunConfig as RunConfig
from pnf.training.config import RunError as RunError
from pnf.training.config import preset_config as preset_config
from pnf.training.join_stages import join as join
from pnf.training.trainer import Interrupted as Interrupted
from pnf.training.trainer import exact_arithmetic as exact_arithmetic
from pnf.training.trainer import train as train
