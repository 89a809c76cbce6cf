"""Joining of stages that were trained in separate folders into one run."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pnf.files import replace_file
from pnf.training.checkpoints import AtomicCheckpointIO
from pnf.training.config import CONFIG_NAME, RunConfig, RunError
from pnf.training.fingerprints import DATA_NAME, Fingerprint
from pnf.training.trainer import checkpoint_path, export


def join(runs: Sequence[Path], folder: Path) -> list[str]:
    """Join runs of the same settings and images into one. Each stage is from the run that trained it furthest.

    Args:
        runs: the folders of the runs, which do not change.
        folder: the folder of the new run. It also gets the flow in ``model/`` if every stage is trained.

    Returns:
        The names of the stages that still need training.

    Raises:
        RunError: the runs have different settings or images, a checkpoint is damaged, or the folder holds a run.
    """
    if (folder / CONFIG_NAME).exists():
        raise RunError(f"{folder} holds a run already: choose another --out")
    config, data = RunConfig.load(runs[0]), _data(runs[0])
    furthest: dict[str, tuple[int, Path]] = {}
    for run in runs:
        other = RunConfig.load(run)
        if not config.same_model(other):
            names = [n for n, value in asdict(config).items() if n != "data" and getattr(other, n) != value]
            raise RunError(
                f"{run} has another {', '.join(names)} than {runs[0]}: only stages of one flow can be joined"
            )
        if not _data(run).same_training(data):
            raise RunError(f"{run} was trained on other images than {runs[0]}: only stages of one flow can be joined")
        for path in sorted(checkpoint_path(run, "*").parent.glob("*.ckpt")):
            checkpoint = AtomicCheckpointIO().load_checkpoint(path)
            if checkpoint.get("name") != path.stem or not config.same_model(checkpoint.get("settings")):
                raise RunError(f"{path} is not of this run: remove it, or restore it")
            if checkpoint["step"] > furthest.get(path.stem, (0, path))[0]:
                furthest[path.stem] = (checkpoint["step"], path)
    checkpoint_path(folder, "*").parent.mkdir(parents=True, exist_ok=True)
    for name, (_, path) in furthest.items():
        replace_file(checkpoint_path(folder, name), path.read_bytes())
    data.save(folder)
    config.save(folder)
    return export(config, data.shape[0], folder)


def _data(run: Path) -> Fingerprint:
    data = None
    with suppress(RunError):
        data = Fingerprint.load(run)
    if data is None:
        path = run / DATA_NAME
        raise RunError(f"{path} is missing or damaged: restore it from the machine on which the stages were trained")
    return data
