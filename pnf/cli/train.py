"""``pnf train``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pnf.cli.common import console, notes, pick_device, progress
from pnf.evaluation.runs import load_images
from pnf.training import PRESETS, RunConfig, RunError, preset_config, train


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
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")] = "auto",
    model: Annotated[
        Literal["progressive", "realnvp"] | None,
        typer.Option(help="progressive, or the realnvp baseline.", rich_help_panel="Model", show_default=False),
    ] = None,
    detail: Annotated[
        Literal["bounded", "identity"] | None,
        typer.Option(
            help="How stages see details: bounded, or identity as in the paper.",
            rich_help_panel="Model",
            show_default=False,
        ),
    ] = None,
    levels: Annotated[int | None, typer.Option(help="Times that each axis is halved.", rich_help_panel="Model")] = None,
    axes: Annotated[
        Literal["xy", "yx", "x", "y"] | None, typer.Option(help="Order in which axes grow.", rich_help_panel="Model")
    ] = None,
    coupling: Annotated[
        Literal["conv", "dense"] | None, typer.Option(help="Kind of the networks.", rich_help_panel="Model")
    ] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of the networks.", rich_help_panel="Model")] = None,
    blocks: Annotated[
        int | None, typer.Option(help="Residual blocks, or hidden layers of dense networks.", rich_help_panel="Model")
    ] = None,
    num_couplings: Annotated[
        int | None, typer.Option(help="Dense: in all; conv: under each mask at each scale.", rich_help_panel="Model")
    ] = None,
    norm: Annotated[
        Literal["act", "batch", "none"] | None,
        typer.Option(help="Normalisation: ActNorm, batch or none.", rich_help_panel="Model"),
    ] = None,
    injector: Annotated[
        bool | None,
        typer.Option(
            "--injector/--no-injector",
            help="Convolutional stages begin with an affine map made of the coarser image.",
            rich_help_panel="Model",
        ),
    ] = None,
    scales: Annotated[
        int | None, typer.Option(help="Most scales of a convolutional flow.", rich_help_panel="Model")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Of the logit: see ProgressiveFlow.", rich_help_panel="Model")
    ] = None,
    memory: Annotated[
        Literal["plain", "invertible"] | None,
        typer.Option(help="invertible: less memory for a third more time.", rich_help_panel="Model"),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data set; see docs/data.md.", rich_help_panel="Data")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width, in pixels.", rich_help_panel="Data")] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many images.", rich_help_panel="Data")] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror images at random.", rich_help_panel="Data")
    ] = None,
    validation: Annotated[
        int | None, typer.Option(help="Training images held out for the curves.", rich_help_panel="Data")
    ] = None,
    keep: Annotated[
        Literal["last", "best"] | None,
        typer.Option(
            help="The averaged weights of the last step, or those that held-out images were most likely under.",
            rich_help_panel="Training",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser.", rich_help_panel="Training")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a batch.", rich_help_panel="Training")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Batches whose gradients make one step.", rich_help_panel="Training")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam.", rich_help_panel="Training")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps of linear warm-up.", rich_help_panel="Training")] = None,
    schedule: Annotated[
        Literal["cosine", "constant"] | None, typer.Option(help="Of the learning rate.", rich_help_panel="Training")
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Bound of each stage's gradient norm.", rich_help_panel="Training")
    ] = None,
    scale_l2: Annotated[
        float | None, typer.Option(help="Penalty on the squared scale parameters.", rich_help_panel="Training")
    ] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of the averaged weights.", rich_help_panel="Training")
    ] = None,
    precision: Annotated[
        Literal["32", "bf16"] | None, typer.Option(help="Inside the networks.", rich_help_panel="Training")
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(help="Steps between validations.", rich_help_panel="Training")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints.", rich_help_panel="Training")
    ] = None,
    log_every: Annotated[
        int | None, typer.Option(help="Steps between rows of the logs.", rich_help_panel="Training")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and noise.", rich_help_panel="Training")] = None,
) -> None:
    """Train a flow, all stages together or some of them apart; Ctrl-C saves, --resume goes on.

    Options override the preset's settings, which are written beside the results.

    Example: [bold]pnf train mnist-dense --data MNIST --steps 2000[/bold]
    """
    overrides = {key: value for key, value in locals().items() if value is not None and key in RunConfig.model_fields}
    if resume is not None:
        # The data may have moved: that it is the same is checked.
        if preset is not None or out is not None or set(overrides) - {"data"}:
            raise RunError("--resume goes on with a run's own settings: give no preset, no --out and no other setting")
        config, folder = RunConfig.load(resume), resume
    elif preset is None:
        raise RunError(f"name a preset ({', '.join(PRESETS)}), or a run to --resume")
    else:
        config = preset_config(preset, **overrides)
        name = config.model if config.model == "realnvp" else f"{config.model}-{config.detail}"
        folder = out if out is not None else Path("runs") / preset / name
    accelerator = pick_device(device).type
    images = load_images(config, "train", data=data, limit=config.limit, progress=progress)
    notes.say(f"Training {config.model} on {len(images):,} images of {images.name} {list(images.shape)} in {folder}")
    chosen = None if stages is None else [name.strip() for name in stages.split(",")]
    missing = train(
        config, images, folder, stages=chosen, resume=resume is not None, accelerator=accelerator, console=notes
    )
    if missing:
        console.say(f"Trained. Stages still to train: {' '.join(missing)} (pnf train --resume {folder})")
    else:
        console.say(f"Trained: {folder}. Next: pnf evaluate {folder}")
