"""Puts the flow of a run among the models that come with pnf.

    python tools/bundle_model.py RUN NAME DATA

Parameters keep 11 bits after the leading one, as in float16 but with the range of float32. So wheels compress them to
two thirds. The change of the likelihood of 200 images, far below its standard error, is printed.
``run.json`` gets DATA in place of the run's own path. The model card is written by hand.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from pnf.data import BUNDLED
from pnf.evaluation import evaluate, load_run
from pnf.evaluation.runs import load_images

_ROOT = Path(__file__).parents[1] / "pnf" / "pretrained"
_DROPPED = 12  # of the 23 bits of a float32


def shorten(x: torch.Tensor) -> torch.Tensor:
    """Rounds float32 numbers to the nearest of 12 significant bits, ties away from zero."""
    bits = x.contiguous().view(torch.int32) + (1 << (_DROPPED - 1))
    return (bits & -(1 << _DROPPED)).view(torch.float32)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Puts the flow of a run among the models that come with pnf.")
    parser.add_argument("run", type=Path, help="the folder of the run")
    parser.add_argument("name", help="the name of the model")
    parser.add_argument("data", help=f"the data set to name in run.json, such as {BUNDLED}")
    options = parser.parse_args()
    config, flow = load_run(options.run)
    images = load_images(config, "test", limit=200)
    before = evaluate(flow, images)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(shorten(parameter))
    after = evaluate(flow, images)
    print(f"bits/dim of {after.images} images: {before.bits_per_dim:.5f}, shortened {after.bits_per_dim:.5f}")
    folder = _ROOT / options.name
    flow.save_pretrained(folder / "model")
    replace(config, data=options.data).save(folder)


if __name__ == "__main__":
    main()
