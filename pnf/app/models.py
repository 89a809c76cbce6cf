"""What the page computes with a trained flow: draws, upscaled pictures, paths between images, bits by stage."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pnf.data import DataError, Images, dequantize
from pnf.data.decode import scan
from pnf.data.images import Progress
from pnf.evaluation.image_files import centres, eight_bits, read_image
from pnf.evaluation.likelihood import (
    Evaluation,
    class_log_probs,
    log_prior,
    num_classes,
    stage_log_probs,
    summarise,
    without_labels,
)
from pnf.evaluation.reports import resolution
from pnf.evaluation.runs import class_counts, find_runs, load_images, load_run, require_images, run_names
from pnf.flows import ProgressiveFlow
from pnf.training.batches import seeded
from pnf.training.build import Flow, stage_dims, stage_inputs, stage_modules, stage_names
from pnf.training.config import RunConfig, RunError
from pnf.training.hardware import exact_arithmetic

MOST_MODELS = 4

MOST_PIXELS = 50_000_000
"""The most pixels of an uploaded picture. While it is resized, each takes up to 12 bytes."""

READ = 500
"""Test images that are read, from the start of the data set, to choose the examples from."""

EXAMPLES = 32

DRAWS = 8
"""Draws of dequantization noise of a picture, for the standard error of its bits."""


@dataclass(frozen=True)
class Model:
    """A run's flow in evaluation mode, on its device.

    Attributes:
        name: the name that the page shows.
        run: the folder of the run.
        config: the run's settings.
        flow: the flow.
        prior: ``log p(c)`` of each class, if the flow takes labels.
    """

    name: str
    run: Path
    config: RunConfig
    flow: Flow
    prior: Tensor | None

    @property
    def device(self) -> torch.device:
        """The device of the flow."""
        return next(self.flow.parameters()).device

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that had training images, and by which the page calls them."""
        return tuple(self.numbered[number] for number in self._trained)

    @property
    def numbered(self) -> tuple[str, ...]:
        """The names of all classes, in the order of their numbers."""
        return self.config.classes or ()

    @cached_property
    def _trained(self) -> list[int]:
        return [] if self.prior is None else self.prior.isfinite().nonzero().flatten().tolist()

    @property
    def stages(self) -> dict[str, str]:
        """The resolution of each stage, such as ``"16x32"``, by its name."""
        return {name: resolution(self.flow, index) for index, name in enumerate(stage_names(self.flow))}

    @property
    def kind(self) -> str:
        """What the model is, in words."""
        name = "Progressive flow" if isinstance(self.flow, ProgressiveFlow) else "RealNVP"
        channels, height, width = self.flow.shape
        colour = {1: "grey ", 3: "colour "}.get(channels, "")
        parts = [
            f"{name} of {colour}images of {height} x {width} pixels",
            f"{sum(p.numel() for p in self.flow.parameters()) / 1e6:.2f}M parameters",
            f"trained on {Path(self.config.data).name} for {self.config.steps:,} steps",
        ]
        return ", ".join(parts)

    def condition(self, name: str, n: int) -> Tensor | None:
        """The label of a class for n images, ``[n]``; none if the flow takes no labels."""
        if self.prior is None:
            return None
        return torch.full((n,), self.numbered.index(name), device=self.device)


def load_models(folders: Sequence[Path], device: torch.device, names: Sequence[str] | None = None) -> list[Model]:
    """Load the runs in some folders, to be shown side by side.

    Args:
        folders: folders of runs, or folders that hold runs.
        device: the device of the flows.
        names: the names of the models. By default those of the folders.

    Raises:
        RunError: there is no run, or too many, or they are of images of several shapes or of different classes.
    """
    runs = [run for folder in folders for run in find_runs(folder)]
    if len(runs) > MOST_MODELS:
        raise RunError(f"the page shows at most {MOST_MODELS} models side by side, got {len(runs)} runs: name those")
    exact_arithmetic()
    models = []
    for run, name in zip(runs, run_names(runs) if names is None else names, strict=True):
        config, flow = load_run(run)
        require_images(config, run)
        classes = num_classes(flow)
        prior = log_prior(classes, class_counts(config, run)) if classes else None
        models.append(Model(name, run, config, flow.to(device), prior))
    first = models[0]
    for model in models[1:]:
        if model.flow.shape != first.flow.shape:
            raise RunError(
                f"{first.name} is of images {list(first.flow.shape)} and {model.name} of {list(model.flow.shape)}: "
                "show only models of the same shape side by side"
            )
    if len({model.config.classes for model in models if model.prior is not None}) > 1:
        raise RunError("the models have different classes: show only models of the same classes side by side")
    return models


class Examples(NamedTuple):
    """Images for the page.

    Attributes:
        images: the images, with their labels if the data set's are known.
        drawn: whether they are draws of the model, since its data set is not here.
    """

    images: Images
    drawn: bool


def load_examples(model: Model, data: str | None = None, progress: Callable[[str], Progress] | None = None) -> Examples:
    """Choose held-out images of the model's data set, or draw some from the model if that is not here.

    Raises:
        DataError, RunError: ``data`` is given, and cannot be read or is of images of another shape.
    """
    labels = model.prior is not None
    how: dict[str, Any] = {"run": model.run, "data": data, "limit": READ, "labels": labels, "progress": progress}
    try:
        found = load_images(model.config, "test", **how)
    except (DataError, RunError):
        if data is not None:
            raise
        x = draw(model, EXAMPLES, [1.0] * len(model.stages))
        return Examples(Images(eight_bits(x.cpu()), model.name, "test"), drawn=True)
    if found.shape != model.flow.shape:
        raise RunError(f"{model.name} is of images {list(model.flow.shape)}, got {found.name} of {list(found.shape)}")
    assert isinstance(found, Images)
    return Examples(found.take(torch.randperm(len(found), generator=seeded(0))[:EXAMPLES]), drawn=False)


def read_picture(
    path: Path, shape: Sequence[int], sizes: Sequence[Sequence[int]] = ()
) -> Tensor:  # [1, C, h, w], uint8
    """Read an untrusted file as 8-bit pixels of a model's shape, or of one of its lower resolutions.

    Args:
        path: the file.
        shape: ``(C, H, W)`` of the model. Pictures are cropped to their central square and resized to it.
        sizes: the sizes ``(h, w)`` that a picture may also have; then a smaller one must have one of these. Without
            them smaller pictures are enlarged.

    Raises:
        DataError: the file is no readable image, or it has too many pixels.
        RunError: the file is gone, or the picture has none of the sizes.
    """
    try:
        _, height, width = scan(path)
    except FileNotFoundError:
        raise RunError(f"{path}: the picture is here no longer; upload it again") from None
    if height * width > MOST_PIXELS:
        raise DataError(f"{path}: wanted at most {MOST_PIXELS:,} pixels, got {width} x {height}; shrink it")
    return eight_bits(read_image(path, shape, exact=bool(sizes), sizes=sizes))


@torch.no_grad()
def draw(
    model: Model, n: int, temperatures: Sequence[float], *, seed: int = 0, label: str | None = None
) -> Tensor:  # [n, C, H, W]
    """Draw samples: those of ``pnf sample`` with the same seed.

    Args:
        model: the model.
        n: the number of samples.
        temperatures: the scale of the noise of each stage.
        seed: the seed of the noise.
        label: the class of all samples of a model with labels. By default the classes follow one another.
    """
    condition = None
    if model.prior is not None and label is None:
        condition = torch.tensor([model._trained[i % len(model._trained)] for i in range(n)], device=model.device)
    elif label is not None:
        condition = model.condition(label, n)
    how: dict[str, Any] = {"generator": torch.Generator().manual_seed(seed)}
    if not isinstance(model.flow, ProgressiveFlow):
        return model.flow.sample(n, condition, temperature=temperatures[0], **how)
    return model.flow.sample(n, condition, temperature=list(temperatures), **how)


def growth(model: Model, x: Tensor) -> list[Tensor]:
    """Images at the resolution of every stage, coarse first. For samples these are the images that the stages made."""
    return stage_inputs(model.flow, x.to(model.device))


@torch.no_grad()
def most_probable(
    model: Model,
    x: Tensor,  # [1, C, h, w] of any stage
) -> str:
    """The most probable class of an image at the resolution of a stage, by Bayes' rule.

    It is that of ``p(c) p(x_[k] | c)``, which only the stages up to the image's own decide.
    """
    assert model.prior is not None
    assert isinstance(model.flow, ProgressiveFlow)
    steps = model.flow.stage_shapes.index(tuple(x.shape[1:]))
    images = [model.flow.downsample(x, steps - k) for k in range(steps + 1)]
    classes = torch.arange(len(model.prior), device=model.device)
    stages = cast("list[Any]", stage_modules(model.flow))
    # The stages above the image's own have no part in it.
    log_probs = [
        stage.log_prob(image.expand(len(classes), *image.shape[1:]), classes)
        for stage, image in zip(stages, images, strict=False)
    ]
    return model.numbered[int((torch.stack(log_probs).sum(0).double().cpu() + model.prior).argmax())]


@torch.no_grad()
def upscale(
    model: Model,
    picture: Tensor,  # [1, C, h, w], uint8
    start: int,
    temperatures: Sequence[float],
    *,
    draws: int = 1,
    seed: int = 0,
    label: str | None = None,
) -> list[list[Tensor]]:
    """Shrink a picture to the resolution of a stage and upscale it again: the images of every stage, for each draw.

    Args:
        model: the model, a progressive flow.
        picture: 8-bit pixels at the resolution of a stage.
        start: the stage to start from, or the picture's own if that is lower.
        temperatures: the scale of the noise of each stage. The stages up to ``start`` make nothing, and need none.
        draws: the number of draws.
        seed: the seed of the noise.
        label: the class of the picture, for a model with labels; by default the one that is most probable for the small
            image.
    """
    flow = model.flow
    assert isinstance(flow, ProgressiveFlow)
    x = centres(picture).to(model.device)
    own = flow.stage_shapes.index(tuple(x.shape[1:]))
    start = min(start, own)
    low = flow.downsample(x, own - start)
    condition = None
    if model.prior is not None:
        condition = model.condition(most_probable(model, low) if label is None else label, draws)
    grown = flow.upsample(
        low.expand(draws, *low.shape[1:]),
        condition=condition,
        temperature=list(temperatures[start + 1 :]),
        generator=torch.Generator().manual_seed(seed),
    )
    images = [low.expand(draws, *low.shape[1:]), *stage_inputs(flow, grown.clamp(0, 1))[start + 1 :]]
    return [list(each) for each in zip(*(image.cpu() for image in images), strict=True)]


@torch.no_grad()
def between(
    model: Model,
    first: Tensor,  # [1, C, H, W], uint8
    last: Tensor,  # [1, C, H, W], uint8
    steps: int,
    *,
    labels: tuple[str | None, str | None] = (None, None),
) -> dict[str, Tensor]:  # of [steps, C, H, W]
    """Move from one picture to another through their codes z, which :func:`great_circle` joins.

    Args:
        model: the model.
        first, last: 8-bit pixels of the pictures.
        steps: the number of images, with both pictures.
        labels: the class of each picture, for a model with labels; by default the most probable ones.

    Returns:
        The images of the path, for each class under which the codes were decoded: those of both pictures, or ``""``.
    """
    ends = [dequantize(picture, seeded(0)).to(model.device) for picture in (first, last)]
    names = [""]
    conditions: list[Tensor | None] = [None, None]
    if model.prior is not None:
        named = [most_probable(model, x) if name is None else name for x, name in zip(ends, labels, strict=True)]
        names = list(dict.fromkeys(named))
        conditions = [model.condition(name, 1) for name in named]
    start, end = (model.flow(x, given)[0] for x, given in zip(ends, conditions, strict=True))
    path = great_circle(start, end, steps)
    return {name: model.flow.inverse(path, model.condition(name, steps))[0].clamp(0, 1).cpu() for name in names}


def great_circle(
    first: Tensor,  # [1, D]
    last: Tensor,  # [1, D]
    steps: int,
) -> Tensor:  # [steps, D]
    """Turn one code into another, by equal angles.

    The codes of images are vectors of normal noise, nearly all of the same length, and the mean of two would be too
    short. So z turns by the angle w between them:

        z(t) = (sin((1 - t) w) z(0) + sin(t w) z(1)) / sin w

    Source: Shoemake, "Animating rotation with quaternion curves" (1985).
    """
    z0, z1 = first.double(), last.double()
    t = torch.linspace(0, 1, steps, dtype=torch.float64, device=first.device)[:, None]
    angle = torch.nn.functional.cosine_similarity(z0, z1).clamp(-1, 1).acos()
    if not 1e-3 < angle < math.pi - 1e-3:
        return torch.lerp(z0, z1, t).to(first.dtype)
    return ((((1 - t) * angle).sin() * z0 + (t * angle).sin() * z1) / angle.sin()).to(first.dtype)


class Bits(NamedTuple):
    """The bits of a picture under a model.

    Attributes:
        evaluation: the likelihood of the picture, with the standard error over draws of dequantization noise. Under a
            model with labels it is that without the label.
        probabilities: ``p(c | x)`` by class, if the model has labels.
    """

    evaluation: Evaluation
    probabilities: dict[str, float] | None


def bits(
    model: Model,
    picture: Tensor,  # [1, C, H, W], uint8
    *,
    seed: int = 0,
) -> Bits:
    """Measure the bits of a picture by stage, and the probability of its classes."""
    images = Images(picture.expand(DRAWS, *picture.shape[1:]), "picture", "test")
    log_probs, by_class = _log_probs(model, images, seed)
    evaluation = summarise(model.flow, log_probs, 1.0)
    if by_class is None or model.prior is None:
        return Bits(evaluation, None)
    posterior = (by_class.sum(2).logsumexp(0) + model.prior).softmax(0).tolist()
    return Bits(evaluation, {model.numbered[number]: posterior[number] for number in model._trained})


def usual_bits(model: Model, images: Images) -> dict[str, tuple[float, float]]:
    """The mean and the standard deviation over images of each stage's share in their bits/dim, and of its sum."""
    nats, _ = _log_probs(model, images, 0)
    sizes = torch.tensor(stage_dims(model.flow), dtype=torch.float64)
    shares = (8 * sizes - nats / math.log(2)) / model.flow.dims
    columns = dict(zip([*stage_names(model.flow), "sum"], [*shares.unbind(1), shares.sum(1)], strict=True))
    return {name: (values.mean().item(), values.std().item()) for name, values in columns.items()}


def _log_probs(model: Model, images: Images, seed: int) -> tuple[Tensor, Tensor | None]:
    """Each stage's share in the log-likelihood of images without labels, and given each class."""
    images = Images(images.pixels, images.name, images.split)
    if model.prior is None:
        return stage_log_probs(model.flow, images, seed=seed), None
    by_class = class_log_probs(model.flow, images, seed=seed)
    return without_labels(by_class, model.prior), by_class
