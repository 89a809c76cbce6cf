"""Detection of images that are foreign to a flow, by the likelihoods of its stages."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pnf import figures
from pnf.data.images import Examples, Progress
from pnf.evaluation.image_files import chart, check_targets
from pnf.evaluation.likelihood import (
    check_images,
    class_log_probs,
    log_prior,
    num_classes,
    stage_log_probs,
    without_labels,
)
from pnf.evaluation.reports import Written, resolution, write_report
from pnf.evaluation.runs import class_counts, load_images, load_only, require_images
from pnf.flows.shapes import bits_per_dim
from pnf.training.batches import hold_out
from pnf.training.build import stage_dims, stage_names
from pnf.training.config import RunConfig, RunError

ANOMALY = "anomaly.json"

ALL = "all"
"""The name of the score of all stages together."""

MEASURES = {
    "image": "log p at this scale",
    "stage": "log p of the stage",
    "typicality": "typicality",
}
"""The measures of :func:`scores`, with their names in tables."""

_TYPICAL = 1000


def typical_images(config: RunConfig, images: Examples) -> Examples:
    """The images that a run held out of its training images, or the first thousand if it held out none."""
    if not config.validation:
        return images.take(slice(_TYPICAL))
    return hold_out(images, config.validation, config.seed)[1]


def scores(
    log_probs: Tensor,  # [N, stages], float64
    typical: Tensor,  # [M, stages], float64
    names: list[str],
) -> dict[str, dict[str, Tensor]]:
    """Score the familiarity of each image by three measures at each stage: ``[N]``, higher is more familiar.

    - ``image``: the log-likelihood of the image at the stage's resolution, ``log p(x_[k])``, the sum up to the stage.
    - ``stage``: the log-likelihood of the stage's details, ``log p(Δ | S) - n log 2``.
    - ``typicality``: minus the distance of the stage's log-likelihood from its mean over typical images. ``all`` takes
      the Mahalanobis distance over the stages, with the covariance over typical images. Likelihoods have a known
      failure (Nalisnick et al., "Do deep generative models know what they don't know?", 2019): simple images are
      likely under a flow of complex ones. Typicality avoids it, since it does not prefer images that are too likely.

    Args:
        log_probs: the share of every stage in the log-likelihood of the images to judge, in nats.
        typical: the same for familiar images other than those to judge.
        names: the names of the stages.
    """
    centred = log_probs - typical.mean(0)
    covariance = torch.cov(typical.T).reshape(len(names), len(names))
    # The pseudo-inverse stays finite where stages are perfectly correlated.
    distances = (centred @ torch.linalg.pinv(covariance, hermitian=True) * centred).sum(1)
    return {
        "image": dict(zip(names, log_probs.cumsum(1).unbind(1), strict=True)),
        "stage": dict(zip(names, log_probs.unbind(1), strict=True)),
        "typicality": dict(zip(names, -centred.abs().T, strict=True)) | {ALL: -distances},
    }


def auroc(own: Tensor, foreign: Tensor) -> float:
    """The probability that an own image scores higher than a foreign one, from ``[N]`` and ``[M]`` scores."""
    # Imported on first use, since it takes a second.
    from torchmetrics.functional.classification import binary_auroc

    # As ranks: torchmetrics takes values outside [0, 1] for logits, and its sigmoid makes large ones equal.
    ranks = torch.unique(torch.cat((own, foreign)), return_inverse=True)[1].double()
    target = torch.cat((torch.ones(len(own), dtype=torch.long), torch.zeros(len(foreign), dtype=torch.long)))
    return float(binary_auroc(ranks / max(1.0, float(ranks.max())), target))


def anomaly(
    run: Path,
    foreign: Sequence[str],
    out: Path,
    *,
    data: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: torch.device,
    progress: Callable[[str], Progress],
) -> Written:
    """Measure how well a run's flow distinguishes its own images from others: ``anomaly.json`` and ``anomaly.png``.

    The likelihoods of a flow with labels are those without, ``log p(x) = log sum_c p(c) p(x | c)``.

    Args:
        run: the folder of the run.
        foreign: the other data sets.
        out: the folder for the results, or a picture in it.
        data: a data set in place of the run's own.
        limit: the largest number of images of each set.
        seed: the seed of the dequantization noise.
        device: the device of the flow.
        progress: makes a progress bar with a description.

    Raises:
        RunError: the run does not exist, or two sets have the same name.
    """
    picture = chart(out, "anomaly")
    targets = [picture.parent / ANOMALY, picture]
    check_targets(targets)
    config, flow = load_only(run, device)
    require_images(config, run)
    own = load_images(config, "test", run=run, data=data, limit=limit, progress=progress)
    sets = [
        own,
        *(load_images(config, "test", data=each, limit=limit, labels=False, progress=progress) for each in foreign),
    ]
    labels = [images.name for images in sets]
    if len(set(labels)) < len(labels):
        raise RunError(f"two of the data sets have the same name: {', '.join(labels)}")
    for images in sets:
        check_images(flow, images, labels=False)
    training = load_images(config, "train", run=run, data=data, limit=config.limit, progress=progress)
    typical = typical_images(config, training)

    classes = num_classes(flow)
    prior = log_prior(classes, class_counts(config, run)) if classes else None

    def log_probs(images: Examples) -> torch.Tensor:
        how: dict[str, Any] = {"seed": seed, "track": progress(f"Evaluating {images.name}")}
        if prior is None:
            return stage_log_probs(flow, images, **how)
        return without_labels(class_log_probs(flow, images, **how), prior)

    familiar = log_probs(typical)
    judged = dict(zip(labels, (log_probs(images) for images in sets), strict=True))
    names = stage_names(flow)
    scored = {label: scores(values, familiar, names) for label, values in judged.items()}
    document = {
        "own": own.name,
        "images": len(own),
        "foreign": {images.name: len(images) for images in sets[1:]},
        "typical_images": len(typical),
        "seed": seed,
        **({} if prior is None else {"prior": prior.exp().tolist()}),
        "auroc": {
            label: {
                measure: {
                    stage: auroc(values, scored[label][measure][stage])
                    for stage, values in scored[own.name][measure].items()
                }
                for measure in MEASURES
            }
            for label in labels[1:]
        },
    }
    panels = {
        label: {
            f"{name} of {resolution(flow, index)}": bits_per_dim(value, dims)
            for index, (name, value, dims) in enumerate(zip(names, values.unbind(1), stage_dims(flow), strict=True))
        }
        | ({"image": bits_per_dim(values.sum(1), flow.dims)} if len(names) > 1 else {})
        for label, values in judged.items()
    }
    title = f"Bits/dim by stage, under a flow trained on {own.name}"
    write_report(targets, document, figures.likelihoods(panels, title=title))
    return Written(targets, document)
