"""Finding and loading of finished runs and of their images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pnf import fast
from pnf.data.images import Examples, Progress, brief_list
from pnf.files import printable
from pnf.flows import ProgressiveFlow
from pnf.flows.saving import WEIGHTS_NAME, read_config
from pnf.training.build import Flow
from pnf.training.config import CONFIG_NAME, MODEL, RunConfig, RunError, one_line
from pnf.training.fingerprints import Fingerprint, check_test, check_training, load_split
from pnf.training.hardware import exact_arithmetic


def find_runs(folder: Path) -> list[Path]:
    """Find the run in a folder, or the runs in its subfolders.

    Raises:
        RunError: there is no run.
    """
    if (folder / CONFIG_NAME).is_file():
        return [folder]
    runs = sorted(path.parent for path in folder.glob(f"*/{CONFIG_NAME}"))
    if not runs:
        raise RunError(f"{folder} holds no run: there is no {CONFIG_NAME} in it; train one with: pnf train demo")
    return runs


def run_names(folders: Sequence[Path]) -> list[str]:
    """The shortest end of each folder's path that no other folder shares."""
    return [_name(folder, folders) for folder in folders]


def _name(folder: Path, folders: Sequence[Path]) -> str:
    parts = folder.resolve().parts
    others = [other.resolve().parts for other in folders if other.resolve() != folder.resolve()]
    for length in range(1, len(parts)):
        if all(other[-length:] != parts[-length:] for other in others):
            return printable("/".join(parts[-length:]))
    return printable(folder)


def load_run(folder: str | Path) -> tuple[RunConfig, Flow]:
    """Load the settings and the trained flow of a run, on the CPU, in evaluation mode.

    Raises:
        RunError: there is no run, its training is not finished, or its files are damaged or do not belong together.
    """
    folder = Path(folder)
    config = RunConfig.load(folder)
    # What comes from the hub lies beside the settings.
    model = folder if (folder / WEIGHTS_NAME).is_file() else folder / MODEL
    if not (model / WEIGHTS_NAME).is_file():
        raise RunError(f"the training in {folder} is not finished; go on with: pnf train --resume {folder}")
    flow = load_flow(model)
    if wrong := _difference(config, flow):
        raise RunError(f"{folder / CONFIG_NAME} and the model beside it do not belong together: {wrong}")
    return config, flow


def _difference(config: RunConfig, flow: Flow) -> str | None:
    """What a flow has that does not fit the settings of a run, if there is anything."""
    size = (flow.shape[0], config.size, config.size)
    classes = None if config.classes is None else len(config.classes)
    of_flow = flow.num_classes if isinstance(flow, ProgressiveFlow) else None
    for name, wanted, found in (
        ("model", config.model, "progressive" if isinstance(flow, ProgressiveFlow) else "realnvp"),
        ("support", config.support, "real" if is_real(flow) else "unit"),
        ("shape", config.shape if config.support == "real" else size, flow.shape),
        ("number of classes", classes, of_flow),
        ("condition", None, flow.condition_shape),
    ):
        if wanted != found:
            return f"the {name} is {wanted} and {found}"
    return None


def is_real(flow: Flow) -> bool:
    """Whether a flow models real data that is no image."""
    return flow.support == "real" if isinstance(flow, ProgressiveFlow) else flow.alpha is None


def load_flow(folder: Path) -> Flow:
    """Load the flow that ``save_pretrained`` wrote into a folder, on the CPU, in evaluation mode.

    Raises:
        RunError: its files are damaged.
    """
    kinds: dict[str, type[Flow]] = {"ProgressiveFlow": fast.ProgressiveFlow, "RealNVP": fast.RealNVP}
    try:
        name = read_config(folder).get("model")
        if not isinstance(name, str) or name not in kinds:
            raise RunError(f"{folder} holds no {' or '.join(kinds)}, but a {name}")
        return kinds[name].from_pretrained(folder)
    except (ValueError, FileNotFoundError) as error:
        raise RunError(one_line(error)) from None


def load_only(folder: Path, device: torch.device) -> tuple[RunConfig, Flow]:
    """Load the settings and the flow of the only finished run in a folder, on the device.

    Raises:
        RunError: there is no run, or more than one.
    """
    return _load_only(folder, find_runs(folder), device)


def require_images(config: RunConfig, folder: Path) -> None:
    """Raise RunError unless a run is of images."""
    if config.support == "real":
        raise RunError(
            f"{folder} is a run on real data, and this command is for images; see pnf evaluate and pnf sample"
        )


def load_progressive(folder: Path, device: torch.device) -> tuple[RunConfig, ProgressiveFlow]:
    """Load a run by :func:`load_only`, and raise unless its flow is a ProgressiveFlow."""
    runs = [run for run in find_runs(folder) if RunConfig.load(run).model == "progressive"]
    if not runs:
        raise RunError(f"{folder} holds no ProgressiveFlow, and only that can grow images")
    config, flow = _load_only(folder, runs, device)
    require_images(config, folder)
    assert isinstance(flow, ProgressiveFlow)
    return config, flow


def _load_only(folder: Path, runs: list[Path], device: torch.device) -> tuple[RunConfig, Flow]:
    if len(runs) > 1:
        raise RunError(f"{folder} holds several runs, choose one: {', '.join(str(run) for run in runs)}")
    config, flow = load_run(runs[0])
    exact_arithmetic()
    return config, flow.to(device)


def load_images(
    config: RunConfig,
    split: str,
    *,
    run: Path | None = None,
    data: str | None = None,
    limit: int | None = None,
    labels: bool | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> Examples:
    """Load a split of the run's data set, or of another, at the run's size.

    Args:
        config: the run's settings.
        split: the name of the split.
        run: the folder of the run, or around it. The run's own images must match the fingerprint in it.
        data: a data set in place of the run's own; it is not checked.
        limit: the largest number of images to read.
        labels: whether to read labels; by default, if the run has any.
        progress: makes a progress bar with a description.

    Raises:
        RunError: the run's data set has changed.
        DataError: the data set cannot be read.
    """
    reading = None if progress is None else progress(f"Reading {config.data if data is None else data}")
    images = load_split(config, split, data=data, limit=limit, labels=labels, progress=reading)
    for folder in _folders_of(config, run) if run is not None and data is None else ():
        if split == "train":
            check_training(folder, config, images)
        else:
            check_test(folder, config, images, limit)
    return images


def _folders_of(config: RunConfig, run: Path) -> list[Path]:
    """The runs with these settings in a folder."""
    return [folder for folder in find_runs(run) if RunConfig.load(folder) == config]


def class_counts(config: RunConfig, run: Path) -> list[int] | None:
    """The number of training images of each class of a run, if it has labels and the numbers are known.

    Args:
        config: the run's settings.
        run: the folder of the run, or around it.

    Raises:
        RunError: there is no run, or its fingerprint is damaged.
    """
    for folder in _folders_of(config, run) if config.labelled else ():
        if fingerprint := Fingerprint.load(folder):
            return fingerprint.of_class
    return None


def pick_labels(config: RunConfig, names: Sequence[str]) -> list[int]:
    """The numbers of classes, from their names or numbers.

    Raises:
        RunError: the run has no labels, or there is no such class.
    """
    if config.classes is None:
        raise RunError("the run has no labels, so it can take no --label; train one with: pnf train --labels")
    found = []
    for name in names:
        if name in config.classes:
            found.append(config.classes.index(name))
        elif name.isdecimal() and int(name) < len(config.classes):
            found.append(int(name))
        else:
            raise RunError(f"there is no class {name}; there are {brief_list(config.classes)}")
    return found
