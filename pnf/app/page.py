"""The page: its controls, and the pictures, charts and tables beneath them. It and the server alone know Gradio."""

import html
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from pnf import figures
from pnf.app.models import Bits, Examples, Model, between, bits, draw, growth, read_picture, upscale, usual_bits
from pnf.data import DataError
from pnf.evaluation.image_files import eight_bits
from pnf.flows import ProgressiveFlow
from pnf.training.build import stage_names
from pnf.training.config import RunError

ACCENT = "#0072B2"
"""The blue of the figures."""

SIDE = 256
"""The least height in pixels at which an image is shown. Each of its pixels becomes a block."""

SHOWN_EXAMPLES = 10

Cell: TypeAlias = tuple[Path, str]
"""A picture of a gallery, and its caption."""

LARGEST_SEED = 2**32 - 1

ANY = "each in turn"
PROBABLE = "most probable"

# Galleries without frames and empty space: an image's caption stands beneath it, and a row stays a row on a phone.
CSS = """
.gradio-container { max-width: min(1200px, 100vw) !important; margin: 0 auto !important; }
.html-container { padding: 0 !important; }
.pixels img { image-rendering: pixelated; height: auto !important; }
.pixels .grid-wrap { min-height: 0 !important; max-height: none !important; overflow: auto !important; }
.pixels .grid-container {
  grid-template-columns: repeat(var(--grid-cols), minmax(48px, 1fr)) !important;
  grid-template-rows: none !important;
  grid-auto-rows: auto !important;
}
.pixels .grid-container .thumbnail-item { aspect-ratio: auto; height: auto; background: none; }
.pixels .grid-container .caption-label {
  position: static; max-width: 100%; padding: 1px; border: 0; background: none;
  text-align: center; white-space: normal; font-size: 0.75rem;
}
.samples .caption-label { display: none; }
@media (max-width: 640px) {
  .samples .grid-container { grid-template-columns: repeat(4, 1fr) !important; }
}
"""

_QUEUED: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1}
_UNSEEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def theme() -> Any:
    """Gradio's own theme, in the blue of the figures."""
    return gr.themes.Default(primary_hue="blue", secondary_hue="blue", radius_size="sm").set(
        button_primary_background_fill=ACCENT,
        button_primary_background_fill_dark=ACCENT,
        button_primary_background_fill_hover="#005f94",
        button_primary_background_fill_hover_dark="#005f94",
        button_primary_text_color="white",
        color_accent=ACCENT,
        slider_color=ACCENT,
        slider_color_dark="#56B4E9",
    )


class Page:
    """The page for some models, which answer side by side.

    The models work for one click after the other. So each click gets the result of its own controls, whoever else
    clicks at that moment.

    Args:
        models: models of images of one shape.
        examples: images to choose from.
    """

    def __init__(self, models: Sequence[Model], examples: Examples) -> None:
        self.models, self.examples = list(models), examples
        self.progressive = [model for model in models if len(model.stages) > 1]
        self.stages = {name: size for model in models for name, size in model.stages.items()}
        self.classes = next((model.classes for model in models if model.classes), ())
        self.usual = [usual_bits(model, examples.images) for model in models]

    def blocks(self, folder: Path) -> Any:
        """The page for Gradio, whose pictures are files in a folder: Gradio's own."""
        self._folder = folder
        names = " and ".join(model.name for model in self.models)
        with gr.Blocks(title=f"pnf: {names}", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
            gr.Markdown("# Progressive Normalizing Flows")
            gr.HTML("<br>".join(f"<b>{html.escape(m.name)}</b>: {html.escape(m.kind)}" for m in self.models))
            with gr.Tabs():
                with gr.Tab("Samples"):
                    self._samples(blocks)
                if self.progressive:
                    with gr.Tab("Upscaling") as tab:
                        self._upscaling(tab)
                with gr.Tab("Between two images") as tab:
                    self._between(tab)
                with gr.Tab("Bits by scale") as tab:
                    self._bits(tab)
        blocks.queue(max_size=64)
        return blocks

    def _samples(self, blocks: Any) -> None:
        gr.Markdown("Draw images from the model. Choose one to see how it grew, stage by stage.")
        with gr.Row():
            count = gr.Slider(1, 64, 16, step=1, label="Number of images", min_width=200)
            seed = _seed()
            label = self._class("Class", ANY)
        temperatures = self._temperatures(list(self.stages), 1.0)
        button, new_seed = _buttons("Draw")
        drawn = [gr.State() for _ in self.models]
        with gr.Row():
            shown = [
                _gallery(
                    8 if len(self.models) == 1 else 4,
                    label=self._title("Samples", model),
                    classes=["samples"],
                    allow_preview=False,
                )
                for model in self._columns()
            ]
        longest = max(len(model.stages) for model in self.models)
        title = "The chosen sample at every stage"
        strips = [_gallery(longest, label=self._title(title, model)) for model in self.models]

        def sample(count: float, seed: float, label: str | None, *scales: float) -> dict[Any, Any]:
            found = [
                draw(
                    model, int(count), self._of(model, self.stages, scales), seed=int(seed or 0), label=_chosen(label)
                ).cpu()
                for model in self.models
            ]
            grids = [[(self._block(x, x.shape), f"sample {i + 1}") for i, x in enumerate(images)] for images in found]
            grown = [self._grown(model, images, 0) for model, images in zip(self.models, found, strict=True)]
            return dict(zip([*shown, *drawn, *strips], [*grids, *found, *grown], strict=True))

        def choose(event: gr.SelectData, *drawn: Tensor) -> dict[Any, Any]:
            grown = [self._grown(model, images, event.index) for model, images in zip(self.models, drawn, strict=True)]
            return dict(zip(strips, grown, strict=True))

        inputs, outputs = [count, seed, label, *temperatures], [*shown, *drawn, *strips]
        gr.on([button.click, blocks.load], sample, inputs, outputs, api_name="sample", **_QUEUED)
        _reseed(new_seed, seed, sample, inputs, outputs)
        for gallery in shown:
            gallery.select(choose, drawn, strips, **_UNSEEN, **_QUEUED)

    def _upscaling(self, tab: Any) -> None:
        gr.Markdown("Shrink a picture, and let the model make it large again. What it cannot know, it draws.")
        file, example = self._picture("Picture")
        sizes = list(max((model.stages for model in self.progressive), key=len).values())[:-1]
        with gr.Row():
            start = gr.Dropdown(sizes, value=sizes[0], label="From (pixels)", min_width=160)
            draws = gr.Slider(1, 4, 2, step=1, label="Draws", min_width=160)
            seed = _seed()
            label = self._class("Class", PROBABLE)
        growing = dict.fromkeys(name for model in self.progressive for name in list(model.stages)[1:])
        temperatures = self._temperatures(list(growing), 0.7)
        button, new_seed = _buttons("Upscale")
        shown = [
            _gallery(len(model.stages) + 1, label=self._title("Stage by stage", model)) for model in self.progressive
        ]

        def enlarge(
            file: str | None,
            example: float,
            start: str,
            draws: float,
            seed: float,
            label: str | None,
            *scales: float,
        ) -> dict[Any, Any]:
            with _mistakes(file):
                galleries = []
                for model in self.progressive:
                    rows, picture = self._upscaled(
                        model,
                        self._pixels(file, example, model),
                        start,
                        [0.0, *self._of(model, growing, scales)],
                        draws=int(draws),
                        seed=int(seed or 0),
                        label=_chosen(label),
                    )
                    galleries.append(
                        gr.Gallery(
                            [cell for row in rows for cell in [*row, *picture]], columns=len(rows[0]) + len(picture)
                        )
                    )
                return dict(zip(shown, galleries, strict=True))

        inputs = [file, example, start, draws, seed, label, *temperatures]
        triggers = [button.click, tab.select, file.change, example.change, start.input, draws.release, label.input]
        gr.on(triggers, enlarge, inputs, shown, api_name="upscale", trigger_mode="always_last", **_QUEUED)
        _reseed(new_seed, seed, enlarge, inputs, shown)

    def _upscaled(
        self, model: Model, picture: Tensor, start: str, temperatures: Sequence[float], **how: Any
    ) -> tuple[list[list[Cell]], list[Cell]]:
        """The images of every draw with their captions, and the picture, if it has full size."""
        sizes = list(model.stages.values())
        if start not in sizes:
            raise RunError(f"{model.name} has no stage of {start}, only {', '.join(sizes)}")
        rows = upscale(model, picture, sizes.index(start), temperatures, **how)
        captions = [f"{name} · {size}" for name, size in model.stages.items()][-len(rows[0]) :]
        captions[0] = f"from {sizes[-len(rows[0])]}"
        real = [(self._levels(picture[0]), "picture")] if tuple(picture.shape[1:]) == model.flow.shape else []
        return [
            [(self._block(image, model.flow.shape), caption) for image, caption in zip(row, captions, strict=True)]
            for row in rows
        ], real

    def _between(self, tab: Any) -> None:
        text = (
            "Each picture has a code: the noise from which the model makes exactly this picture. The strip shows the "
            "images on the way from one code to the other."
        )
        if self.classes:
            text += " A model with classes makes a row for the class of each picture."
        gr.Markdown(text)
        first, last = self._picture("From"), self._picture("To", 1)
        with gr.Row():
            first_class = self._class("Class of the first picture", PROBABLE)
            last_class = self._class("Class of the last picture", PROBABLE)
            steps = gr.Slider(3, 15, 9, step=1, label="Number of images", min_width=160)
        button = gr.Button("Move", variant="primary")
        title = "From the first picture to the last"
        shown = [_gallery(9, label=self._title(title, model)) for model in self.models]

        def move(
            file: str | None,
            example: float,
            last_file: str | None,
            last_example: float,
            first_class: str | None,
            last_class: str | None,
            steps: float,
        ) -> dict[Any, Any]:
            with _mistakes(file, last_file):
                ends = self._pixels(file, example), self._pixels(last_file, last_example)
                labels = _chosen(first_class), _chosen(last_class)
                galleries = []
                for model in self.models:
                    ways = between(model, *ends, int(steps), labels=labels)
                    cells = [
                        (self._block(image, image.shape), f"{name} {100 * k / (int(steps) - 1):.0f}%".strip())
                        for name, way in ways.items()
                        for k, image in enumerate(way)
                    ]
                    galleries.append(gr.Gallery(cells, columns=int(steps)))
                return dict(zip(shown, galleries, strict=True))

        inputs = [*first, *last, first_class, last_class, steps]
        triggers = [button.click, tab.select, steps.release, first_class.input, last_class.input]
        triggers += [event for file, example in (first, last) for event in (file.change, example.change)]
        gr.on(triggers, move, inputs, shown, api_name="between", trigger_mode="always_last", **_QUEUED)

    def _bits(self, tab: Any) -> None:
        count = len(self.examples.images)
        kind = "draws of the model" if self.examples.drawn else "held-out images"
        gr.Markdown(
            "How many bits each stage needs for a picture. Few bits mean a likely picture. A stage far from its usual "
            f"value finds the picture odd at its scale. Usual values are those of {count} {kind}, mean ± standard "
            "deviation."
        )
        file, example = self._picture("Picture")
        button = gr.Button("Measure", variant="primary")
        chart = gr.Plot(show_label=False, format="png")
        table = gr.Dataframe(label="Bits/dim: the share of each stage", interactive=False)
        labelled = [model for model in self.models if model.classes]
        with gr.Row():
            guesses = [gr.Label(label=f"Class by Bayes' rule: {m.name}", num_top_classes=5) for m in labelled]

        def measure(file: str | None, example: float) -> list[Any]:
            with _mistakes(file):
                picture = self._pixels(file, example)
                found = [bits(model, picture) for model in self.models]
                guessed = [each.probabilities for each in found if each.probabilities is not None]
                return [self._chart(found), self._table(found), *guessed]

        triggers = [button.click, tab.select, file.change, example.change]
        outputs = [chart, table, *guesses]
        gr.on(triggers, measure, [file, example], outputs, api_name="bits", trigger_mode="always_last", **_QUEUED)

    def _chart(self, found: Sequence[Bits]) -> Figure:
        bars, errors = {}, {}
        for model, usual, (evaluation, _) in zip(self.models, self.usual, found, strict=True):
            bars[model.name] = evaluation.stage_bits_per_dim
            errors[model.name] = evaluation.bits_per_dim_error
            bars[f"{model.name}, usual"] = {name: usual[name][0] for name in stage_names(model.flow)}
        return figures.bits_per_stage(bars, standard_errors=errors, title="Where the bits of this picture are")

    def _table(self, found: Sequence[Bits]) -> dict[str, Any]:
        rows = []
        for model, usual, (evaluation, _) in zip(self.models, self.usual, found, strict=True):
            for name, value in [*evaluation.stage_bits_per_dim.items(), ("sum", evaluation.bits_per_dim)]:
                mean, deviation = usual[name]
                numbers = [f"{value:.3f}", f"{mean:.3f} ± {deviation:.3f}"]
                rows.append([model.name, name, model.stages.get(name, ""), *numbers])
        headers = ["model", "stage", "resolution", "this picture", "usual"]
        if len(self.models) == 1:
            headers, rows = headers[1:], [row[1:] for row in rows]
        return {"headers": headers, "data": rows}

    def _picture(self, label: str, chosen: int = 0) -> tuple[Any, Any]:
        """An upload, and examples to choose from: the file, and the number of the example."""
        images = self.examples.images.take(slice(SHOWN_EXAMPLES))
        names = [""] * len(images)
        if images.labels is not None:
            names = [images.classes[number] for number in images.labels.tolist()]
        cells = [(self._levels(image), name or None) for image, name in zip(images.pixels, names, strict=True)]
        with gr.Row():
            file = gr.File(label=f"{label}: a file", file_types=["image"], height=130, min_width=240)
            with gr.Column(scale=2, min_width=320):
                gallery = _gallery(
                    SHOWN_EXAMPLES, cells, label="Or an example", allow_preview=False, selected_index=chosen
                )
        example = gr.Number(chosen, visible=False)

        def choose(event: gr.SelectData) -> list[Any]:
            return [event.index, None]

        gallery.select(choose, None, [example, file], queue=False, **_UNSEEN)
        # While there is a file, no example is marked.
        file.change(
            lambda file, example: gr.Gallery(selected_index=int(example) if file is None else None),
            [file, example],
            gallery,
            queue=False,
            **_UNSEEN,
        )
        return file, example

    def _pixels(self, file: str | None, example: float, model: Model | None = None) -> Tensor:
        """The pixels of the file or else of the example, uint8 ``[1, C, h, w]``, as a model can start from them."""
        shape = self.models[0].flow.shape
        if file is not None:
            sizes = (
                [size[1:] for size in model.flow.stage_shapes]
                if model and isinstance(model.flow, ProgressiveFlow)
                else []
            )
            return read_picture(Path(file), shape, sizes)
        number = int(example)
        if not 0 <= number < len(self.examples.images):
            raise RunError(f"there is no example {number}")
        return self.examples.images.pixels[number : number + 1]

    def _class(self, label: str, other: str) -> Any:
        return gr.Dropdown([other, *self.classes], value=other, label=label, visible=bool(self.classes), min_width=160)

    def _temperatures(self, names: Sequence[str], value: float) -> list[Any]:
        """A slider for each stage, and one that sets them all."""
        whole = gr.Slider(0, 1.5, value, step=0.05, label="Temperature of all stages (0: no noise, 1: as trained)")
        with gr.Accordion("Temperature by stage", open=False), gr.Row():
            sliders = [
                gr.Slider(0, 1.5, value, step=0.05, label=f"{name} · {self.stages[name]}", min_width=160)
                for name in names
            ]
        whole.input(lambda value: [value] * len(sliders), whole, sliders, queue=False, **_UNSEEN)
        return sliders

    def _title(self, text: str, model: Model) -> str:
        """A title of what a model has made."""
        return text if len(self.models) == 1 else f"{text}: {model.name}"

    def _columns(self) -> Iterator[Model]:
        """Make a column for each model."""
        for model in self.models:
            with gr.Column(min_width=320):
                yield model

    def _grown(self, model: Model, images: Tensor, index: int) -> list[Cell]:
        """One of the images at every stage, with captions."""
        stages = growth(model, images[index : index + 1])
        return [
            (self._block(image[0], model.flow.shape), f"{name} · {size}")
            for image, (name, size) in zip(stages, model.stages.items(), strict=True)
        ]

    def _block(self, image: Tensor, shape: Sequence[int]) -> Path:
        """A picture of an image [C, h, w] in [0, 1], in the proportions of a shape."""
        return self._levels(eight_bits(image).cpu(), shape)

    def _levels(self, pixels: Tensor, shape: Sequence[int] | None = None) -> Path:
        """A picture of 8-bit pixels [C, h, w], enlarged by whole factors, to the proportions of a shape.

        Each is a file of its own, that nobody writes again: another click must not change it while a browser reads it.
        """
        height, width = (pixels.shape if shape is None else shape)[-2:]
        factor = -(-SIDE // height)
        for dim, size in ((1, height), (2, width)):
            pixels = pixels.repeat_interleave(factor * size // pixels.shape[dim], dim)
        path = self._folder / f"{uuid.uuid4().hex}.png"
        Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy()).save(path)
        return path

    @staticmethod
    def _of(model: Model, names: Iterable[str], values: Sequence[float]) -> list[float]:
        """The values of a model's own stages among those of all stages."""
        return [value for name, value in zip(names, values, strict=True) if name in model.stages]


def _gallery(columns: int, value: Any = None, *, label: str, classes: Sequence[str] = (), **how: Any) -> Any:
    gr.HTML(html.escape(label))
    return gr.Gallery(
        value,
        label=label,
        show_label=False,
        columns=columns,
        fit_columns=False,
        object_fit="contain",
        height="auto",
        format="png",
        buttons=["download", "fullscreen"],
        interactive=False,
        elem_classes=["pixels", *classes],
        **how,
    )


def _seed() -> Any:
    return gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED, min_width=120)


def _buttons(name: str) -> tuple[Any, Any]:
    with gr.Row():
        return gr.Button(name, variant="primary", scale=3), gr.Button("New seed", scale=1)


def _reseed(button: Any, seed: Any, function: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
    """Let a button choose another seed, and answer with it."""
    chosen = button.click(lambda: int(torch.randint(LARGEST_SEED, ())), None, seed, queue=False, **_UNSEEN)
    chosen.then(function, inputs, outputs, api_visibility="private", **_QUEUED)


@contextmanager
def _mistakes(*files: str | None) -> Iterator[None]:
    """Show a user's mistake in the page, and a file by its name alone."""
    try:
        yield
    except (DataError, RunError) as error:
        message = str(error)
        for file in files:
            if file is not None:
                message = message.replace(file, Path(file).name)
        raise gr.Error(html.escape(message), duration=None, print_exception=False) from None


def _chosen(label: str | None) -> str | None:
    """The class that the user has chosen, if it is one."""
    return None if label in (ANY, PROBABLE) else label
