"""``pnf train``."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from pnf.cli.common import absent_classes, console, notes, pick_device, progress, summarise
from pnf.data import Reals
from pnf.evaluation.runs import load_images
from pnf.training import PRESETS, RunConfig, RunError, preset_config, train


def _takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes ``**settings`` an option for each setting of a run, with its description as help."""
    signature = inspect.signature(command, eval_str=True)
    options = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    types: dict[str, Any] = get_type_hints(RunConfig)
    for f in fields(RunConfig):
        group = f.metadata.get("group", "Model")
        if group is None:
            continue
        option = typer.Option(help=f.metadata["description"], rich_help_panel=group, show_default=False)
        kind: Any = Annotated[types[f.name] | None, option]
        options.append(inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
    command.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    return command


@_takes_settings
def train_command(
    preset: Annotated[str | None, typer.Argument(help=f"One of {', '.join(PRESETS)}.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. Default: runs/PRESET/MODEL.", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder, with its own settings.", show_default=False)
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(help="Train only these stages, e.g. f0,f1x; their results are the same.", show_default=False),
    ] = None,
    labels: Annotated[
        bool,
        typer.Option(
            "--labels", help="Condition the flow on the images' labels; see docs/data.md.", show_default=False
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")] = "auto",
    **settings: Any,
) -> None:
    """Train a flow, all stages together or some of them apart; Ctrl-C saves, --resume goes on.

    Options override the preset's settings, which are written beside the results.

    Example: pnf train demo --out runs/demo/pnf

    Example: pnf train mnist-dense --data MNIST --steps 2000

    Example: pnf train mnist-dense --data MNIST --labels

    Example: pnf train demo --data waves.npz --support real
    """
    overrides = {key: value for key, value in settings.items() if value is not None}
    if resume is not None:
        # The data may have moved: that it is the same is checked.
        if preset is not None or out is not None or labels or set(overrides) - {"data"}:
            raise RunError("--resume goes on with a run's own settings: give no preset, no --out and no other setting")
        config, folder = RunConfig.load(resume), resume
    elif preset is None:
        raise RunError(f"name a preset ({', '.join(PRESETS)}), or a run to --resume")
    else:
        if settings["attribute"] is not None and not labels:
            raise RunError("--attribute is the label of an image of CelebA: give --labels too")
        if labels and settings["support"] == "real":
            raise RunError("--labels are of images: leave it out with --support real")
        config = preset_config(preset, **overrides)
        name = config.model if config.model == "realnvp" else f"{config.model}-{config.detail}"
        folder = out if out is not None else Path("runs") / preset / name
    accelerator = pick_device(device).type
    reading: dict[str, Any] = {"data": settings["data"], "limit": config.limit, "progress": progress}
    images = load_images(config, "train", labels=labels or config.labelled, **reading)
    if labels:
        config = config.of_classes(images.classes)
    if absent := absent_classes(images):
        notes.say(f"No training image is of the classes {absent}: the flow cannot learn them")
    if config.support == "real" and resume is None:
        assert isinstance(images, Reals)
        config = config.of_reals(images)
        assert config.standardisation is not None
        images = config.standardisation.of(images)
    classes = f", {len(images.classes)} classes," if images.classes else ""
    what = "images" if config.support == "unit" else "standardised examples"
    notes.say(
        f"Training {config.model} on {len(images):,} {what} of {images.name} {list(images.shape)}{classes} in {folder}"
    )
    chosen = None if stages is None else [name.strip() for name in stages.split(",")]
    missing = train(
        config, images, folder, stages=chosen, resume=resume is not None, accelerator=accelerator, console=notes
    )
    console.say(f"Trained: {folder}")
    if missing:
        console.say(f"Stages still to train: {' '.join(missing)}")
    summarise((), "pnf", *(("train", "--resume") if missing else ("evaluate",)), folder)
