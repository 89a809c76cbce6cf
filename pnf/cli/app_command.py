"""``pnf app``."""

from pathlib import Path
from typing import Annotated

import typer

from pnf.cli.common import (
    DataOption,
    DeviceOption,
    PretrainedOption,
    console,
    notes,
    pick_device,
    pick_run,
    progress,
)
from pnf.training import RunError


def app_command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of runs, or folders that hold runs: they answer side by side."),
    ] = None,
    pretrained: PretrainedOption = None,
    data: DataOption = None,
    host: Annotated[
        str, typer.Option(help="Address to serve on. By default only this machine reaches the page.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on; 0 is any that is free.")] = 7860,
    device: DeviceOption = "auto",
) -> None:
    """Open a page in the browser: draw samples, upscale pictures, move between images, see the bits of each scale.

    The page shows one model, or several of the same kind of images side by side. It needs no network, and its server
    answers this machine only, unless --host says otherwise. Ctrl-C ends it.

    Example: pnf app runs/demo/pnf

    Example: pnf app --pretrained fashion-mnist
    """
    try:
        from pnf.app.server import application, is_loopback, listen, serve, url
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pnf"):
            raise
        raise RunError(f"pnf app needs {error.name}; install it with: pip install 'pnf[app]'") from None
    from pnf.app.models import load_examples, load_models
    from pnf.app.page import Page

    folders = runs or []
    if len(folders) < 2 or pretrained is not None:
        folders = [pick_run(folders[0] if folders else None, pretrained)[0]]
    with listen(host, port) as opened:
        models = load_models(folders, pick_device(device), None if pretrained is None else [pretrained])
        examples = load_examples(models[0], data, progress)
        if examples.drawn:
            notes.say(f"The data of {models[0].name} is not here: its examples are draws (--data names a data set)")
        with application(Page(models, examples), host) as served:
            if not is_loopback(host):
                notes.say(f"Warning: there is no password, and whoever reaches {host} can use this page")
            console.say(f"The page: {url(opened, host)} (Ctrl-C ends it)")
            console.file.flush()
            serve(served, opened)
