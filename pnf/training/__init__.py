"""Training, evaluation and their settings; what the command line is made of."""

from pnf.training.batches import seeded as seeded
from pnf.training.checking import Check as Check
from pnf.training.checking import check as check
from pnf.training.config import PRESETS as PRESETS
from pnf.training.config import RunConfig as RunConfig
from pnf.training.config import RunError as RunError
from pnf.training.config import preset_config as preset_config
from pnf.training.evaluation import Evaluation as Evaluation
from pnf.training.evaluation import evaluate as evaluate
from pnf.training.evaluation import find_runs as find_runs
from pnf.training.evaluation import load_flow as load_flow
from pnf.training.evaluation import load_run as load_run
from pnf.training.joining import join as join
from pnf.training.models import Flow as Flow
from pnf.training.trainer import Interrupted as Interrupted
from pnf.training.trainer import exact_arithmetic as exact_arithmetic
from pnf.training.trainer import train as train
