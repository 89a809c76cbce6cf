"""Models on the Hugging Face Hub: the download of their files, the upload, and the model card.

Only a configuration, weights in safetensors and the settings of a run are ever downloaded, and nothing in them is
executed. The library ``huggingface_hub`` keeps the cache, the token and the address of the hub.
"""

import importlib
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pnf
from pnf.files import json_bytes, printable, read_json

CARD_NAME = "README.md"
SETTINGS_NAME = "run.json"

_INSTALL = "pip install 'pnf[hub]'"
_LOG_IN = "log in with `hf auth login`, or give a token"

# A path that begins with a dot or a slash is none.
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)

_LICENCES = {"fashion-mini": "MIT"}
"""The licences of data sets that are known to be one and the same everywhere. That of a model is its owner's choice."""


def is_name(path: object) -> bool:
    """Whether a path may be the name of a repository, ``owner/name``."""
    return isinstance(path, str) and _NAME.fullmatch(path) is not None


def download(name: str, files: list[str], *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Download some files of a repository into the cache, all of one revision, and return their folder.

    Without a network, the files in the cache are taken.

    Args:
        name: ``owner/name``.
        files: the names of the files that the repository must have. The settings of a run come with them.
        revision: a branch, a tag or a commit; by default the newest of the main branch.
        token: a token that may read the repository; by default that of ``hf auth login``.

    Raises:
        FileNotFoundError: there is no such repository, revision or file, or ``huggingface_hub`` is not installed.
        PermissionError: the repository may not be read with this token.
        ConnectionError: the hub cannot be reached, and the files are not in the cache.
        ValueError: the name is none of a repository.
    """
    try:
        library = _library()
    except ImportError:
        raise FileNotFoundError(
            f"from_pretrained: there is no folder {name}; to load a repository of that name from the hub: {_INSTALL}"
        ) from None
    try:
        folder = library.snapshot_download(
            name,
            revision=revision,
            token=token,
            allow_patterns=[*files, SETTINGS_NAME],
            library_name="pnf",
            library_version=pnf.__version__,
        )
    except Exception as error:
        raise _explained("from_pretrained", name, revision, error) from error
    for file in files:
        if not (Path(folder) / file).is_file():
            raise FileNotFoundError(
                f"the repository {name} has no {file}, which its owner can add by push_to_hub(..., run=FOLDER)"
                if file == SETTINGS_NAME
                else f"from_pretrained: the repository {name} has no {file}: only flows that push_to_hub or "
                "save_pretrained wrote can be loaded, and no pickles"
            )
    return Path(folder)


def upload(
    name: str,
    files: Mapping[str, bytes],
    card: Callable[[str], bytes],
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str,
) -> str:
    """Upload files as one commit to a repository, which is created if it is missing.

    A model card that the repository has already stays as it is, since its owner may have edited it.

    Args:
        name: ``owner/name``, or ``name`` of the owner of the token.
        files: the content of the files by their names.
        card: makes the model card from the full name of the repository.
        private: whether a new repository is private; by default as the owner has set it.
        token: a token that may write; by default that of ``hf auth login``.
        revision: the branch, created if it is missing; by default the main one.
        message: the message of the commit.

    Returns:
        The address of the commit.

    Raises:
        ImportError: ``huggingface_hub`` is not installed.
        PermissionError: the token may not write there, or there is none.
        ConnectionError: the hub cannot be reached.
        ValueError: the name is none of a repository.
    """
    library = _library()
    made = card(name)  # first, so that an error leaves no empty repository
    try:
        api = library.HfApi(token=token, library_name="pnf", library_version=pnf.__version__)
        full_name = api.create_repo(name, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(full_name, branch=revision, exist_ok=True)
        has_card = api.file_exists(full_name, CARD_NAME, revision=revision)
    except Exception as error:
        raise _explained("push_to_hub", name, revision, error) from error
    if full_name != name:
        made = card(full_name)
    with tempfile.TemporaryDirectory() as folder:
        for file, content in (files if has_card else {**files, CARD_NAME: made}).items():
            (Path(folder) / file).write_bytes(content)
        try:
            commit = api.upload_folder(repo_id=full_name, folder_path=folder, revision=revision, commit_message=message)
        except Exception as error:
            raise _explained("push_to_hub", full_name, revision, error) from error
    return str(commit.commit_url)


def _library() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise ImportError(f"push_to_hub needs huggingface_hub: {_INSTALL}") from None


def _explained(action: str, name: str, revision: str | None, error: Exception) -> Exception:
    """The error of huggingface_hub as one of Python's, in one line with the remedy."""
    errors: Any = importlib.import_module("huggingface_hub.errors")
    hub: str = importlib.import_module("huggingface_hub.constants").ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"{action}: {printable(name)!r} is no name of a repository, owner/name: {_reason(error)}")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return PermissionError(f"{action}: there is no token: {_LOG_IN}")
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(f"{action}: access to {name} must be asked for at {hub}/{name}; then {_LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{action}: the repository {name} has no revision {printable(revision)}")
    if action == "push_to_hub" and (status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError)):
        return PermissionError(f"{action}: {hub} lets nobody write to {name} with this token: {_LOG_IN} that may write")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return FileNotFoundError(
            f"{action}: there is no folder {name}, and no repository of that name on {hub} that you may read; if it is "
            f"private, {_LOG_IN}"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return ConnectionError(
            f"{action}: {hub} cannot be asked for {name}, and its files are not in the cache: {_reason(error)}"
        )
    return ConnectionError(f"{action}: {hub} did not answer as it should about {name}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """The first line of the message of what caused an error, since those of huggingface_hub have many lines."""
    cause = error.__cause__ or error
    return printable(next(iter(str(cause).strip().splitlines()), type(cause).__name__))


class Run(NamedTuple):
    """What a run's folder tells about a model."""

    settings: dict[str, Any]
    """The settings in ``run.json``, with the last part of the path of the data: the rest names private folders."""
    result: dict[str, Any]
    """The figures in ``metrics.json``, if they are of these settings and of held-out data of their data set."""

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read the folder of a run.

        Raises:
            FileNotFoundError: there is no run.
            ValueError: its settings are damaged.
        """
        try:
            settings = read_json(folder / SETTINGS_NAME)
        except FileNotFoundError:
            raise FileNotFoundError(f"push_to_hub: {folder} holds no run: there is no {SETTINGS_NAME} in it") from None
        except ValueError as error:
            raise ValueError(f"push_to_hub: {folder / SETTINGS_NAME} is damaged: {error}") from error
        if not isinstance(settings, dict):
            raise ValueError(f"push_to_hub: {folder / SETTINGS_NAME} is damaged: it holds no settings")
        result: dict[str, Any] = {}
        # A run need not have been evaluated, and the file may hold several runs.
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            metrics: Any = read_json(folder / "metrics.json")
            (found,) = (model["result"] for model in metrics["models"].values() if _is_of(model, settings))
            result = {key: float(found[key]) for key in _figures_of(settings)}
            if settings.get("classes"):
                result["given_label"] = result["bits_per_dim"]
                result |= {key: float(found["classification"][key]) for key in _OF_CLASSES}
        settings["data"] = Path(str(settings.get("data", ""))).name
        return cls(settings, result)

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise ValueError unless the settings are of a flow with this ``config.json``."""
        settings = self.settings
        wanted = {key: value for key, value in settings.items() if value is not None and key in config}
        wanted["model"] = {"progressive": "ProgressiveFlow", "realnvp": "RealNVP"}.get(str(settings.get("model")))
        wanted["shape"] = settings.get("shape") or [*config["shape"][:-2], *[settings.get("size")] * 2]
        if "num_classes" in config:
            classes = settings.get("classes")
            wanted |= {"num_classes": classes and len(classes), "support": settings.get("support", "unit")}
        for key, value in wanted.items():
            own = list(config[key]) if isinstance(config[key], tuple) else config[key]
            if own != value:
                raise ValueError(
                    f"push_to_hub: the run did not train this flow: {key} is {printable(value)} in its "
                    f"{SETTINGS_NAME}, and {printable(own)} in the flow"
                )

    def files(self) -> dict[str, bytes]:
        """The files of the run that go to the hub."""
        return {SETTINGS_NAME: json_bytes(self.settings)}


_OF_CLASSES = ("bits_per_dim", "bits_per_dim_error", "accuracy", "accuracy_error")
"""The figures of a labelled run without the label."""


def _figures_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the figures of a run in ``metrics.json``."""
    if settings.get("support") == "real":
        return "nats", "nats_error", "nats_per_dim", "nats_per_dim_error", "examples"
    return "bits_per_dim", "bits_per_dim_error", "nats", "images"


def _is_of(model: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether figures are of a run with these settings, on the held-out data of its own data set."""
    # A run of an older version lacks the settings that came later.
    same = all(model["settings"].get(key) == value for key, value in settings.items() if key != "format")
    return same and model["data"] == settings["data"] and model["limit"] in (None, settings.get("limit"))


def model_card(name: str, config: Mapping[str, Any], parameters: int, run: Run | None) -> bytes:
    """The model card, ``README.md`` with YAML front matter.

    Args:
        name: the name of the repository.
        config: the content of the flow's ``config.json``.
        parameters: the number of the flow's parameters.
        run: the run that trained the flow, if it is known.
    """
    library = _library()
    kind, shape = str(config["model"]), "x".join(map(str, config["shape"]))
    conditions = _conditions(config)
    image = len(config["shape"]) == 3 and _is_unit(config)
    data = run.settings["data"] if run is not None else ""
    result = run.result if run is not None else {}
    evaluated = (
        library.EvalResult(
            task_type="unconditional-image-generation",
            dataset_type=data,
            dataset_name=data,
            metric_type="bits_per_dim",
            metric_name="bits per dimension, held out",
            metric_value=round(result["bits_per_dim"], 4),
        )
        if "bits_per_dim" in result
        else None
    )
    front = library.ModelCardData(
        library_name="pnf",
        pipeline_tag="unconditional-image-generation" if image and not conditions else None,
        tags=["normalizing-flow", "density-estimation", *(["super-resolution"] if kind == "ProgressiveFlow" else [])],
        model_name=name.rpartition("/")[2] if evaluated else None,
        eval_results=[evaluated] if evaluated else None,
    ).to_yaml()
    facts = {
        "flow": f"`{kind}`, {config['coupling']} couplings, {config['norm']} normalisation",
        "data": shape,
        "levels": f"{config['levels']}, {config['detail']} details" if "levels" in config else "",
        "networks": f"hidden {config['hidden']}, blocks {config['blocks']}, num_couplings {config['num_couplings']}"
        + "".join(f", {key} {config[key]}" for key in ("encoder", "spline") if config.get(key)),
        **{
            key: "x".join(map(str, size)) or f"labels, {config['num_classes']} classes"
            for key, size in conditions.items()
        },
        "parameters": f"{parameters:,}",
    }
    parts = [
        f"---\n{front}\n---\n",
        f"# {name.rpartition('/')[2]}\n",
        "A normalizing flow of pnf: an exact density `log p(x)`, and samples.\n",
        _table(facts),
        "## Use\n",
        _use(name, config, run),
    ]
    if run is not None and run.settings.get("classes"):
        parts += ["The labels and their classes:\n", _table(dict(enumerate(run.settings["classes"])))]
    if run is not None:
        keys = ("data", "size", "steps", "batch_size", "lr", "ema", "keep", "precision", "seed")
        parts += ["## Training\n", _table({key: run.settings[key] for key in keys if key in run.settings})]
        parts += [f"All settings are in `{SETTINGS_NAME}`.\n"]
        if data in _LICENCES:
            parts += [f"The data set {data} has the licence {_LICENCES[data]}.\n"]
    if result:
        parts += ["## Held-out likelihood\n", _table(_figures(result))]
    parts += ["The weights are safetensors, the configuration is JSON: nothing in this repository is executed.\n"]
    return "\n".join(parts).encode()


def _conditions(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """The names and shapes of a flow's conditions, ``[]`` for labels."""
    found: dict[str, list[int]] = {}
    if config.get("num_classes") or config.get("condition_shape"):
        found["condition"] = list(config.get("condition_shape") or ())
    if config.get("features"):
        found["features"] = [config["features"]]
    return found


def _is_unit(config: Mapping[str, Any]) -> bool:
    """Whether a flow is of data in [0, 1]."""
    return config.get("support", "unit") == "unit" and config.get("alpha") is not None


def _use(name: str, config: Mapping[str, Any], run: Run | None) -> str:
    """The block of code that draws samples and takes their likelihood, in the units of the data."""
    kind, conditions = str(config["model"]), _conditions(config)
    real = run is not None and run.settings.get("support") == "real"
    imports = [f"from pnf import {kind}"]
    if conditions or real:
        imports = ["import torch", *imports]
    if real:
        imports = ["import json\nfrom pathlib import Path\n", "from huggingface_hub import hf_hub_download", *imports]
    lines = [f"# {_INSTALL}", *imports, "", f"flow = {kind}.from_pretrained({name!r})"]
    for key, size in conditions.items():
        if size:
            lines.append(f"{key} = torch.zeros(16, {', '.join(map(str, size))})  # an example; give your own")
        else:
            lines.append(f"{key} = torch.zeros(16, dtype=torch.long)  # labels from 0 to {config['num_classes'] - 1}")
    given = "".join(f", {key}={key}" for key in conditions)
    # Samples may leave [0, 1], where log_prob ends.
    clamp = ".clamp(0, 1)" if _is_unit(config) and config.get("detail") != "bounded" else ""
    if real:
        lines += [
            "",
            "# The flow is of standardised data, (x - mean) / std.",
            f"run = json.loads(Path(hf_hub_download({name!r}, {SETTINGS_NAME!r})).read_text())",
            "sizes = -1, *(1 for _ in flow.shape[1:])",
            'mean, std = (torch.tensor(run[key], dtype=torch.float64).reshape(sizes) for key in ("mean", "std"))',
            f"samples = flow.sample(16{given}) * std + mean",
            f"log_probs = flow.log_prob(((samples - mean) / std).float(){given}) - std.expand(flow.shape).log().sum()",
        ]
    else:
        lines += [f"samples = flow.sample(16{given}){clamp}", f"log_probs = flow.log_prob(samples{given})"]
    return "\n".join(["```python", *lines, "```", ""])


def _figures(result: Mapping[str, float]) -> dict[str, str]:
    """The figures of a run, with their units."""
    if "nats_per_dim" in result:
        return {
            "nats, in the units of the data": f"{result['nats']:,.1f} ± {result['nats_error']:.1f}",
            "nats per dimension": f"{result['nats_per_dim']:.3f} ± {result['nats_per_dim_error']:.3f}",
            "examples": f"{result['examples']:,.0f}",
        }
    bits = f"{result['bits_per_dim']:.3f} ± {result['bits_per_dim_error']:.3f}"
    images = f"{result['images']:,.0f}"
    if "given_label" not in result:
        return {"bits per dimension": bits, "nats": f"{result['nats']:,.1f}", "images": images}
    return {
        "bits per dimension, without the label": bits,
        "bits per dimension, given the label": f"{result['given_label']:.3f}",
        "nats, given the label": f"{result['nats']:,.1f}",
        "accuracy by Bayes' rule": f"{100 * result['accuracy']:.2f} ± {100 * result['accuracy_error']:.2f} %",
        "images": images,
    }


def _table(rows: Mapping[Any, object]) -> str:
    lines = [
        f"| {key} | {printable(value).replace('|', chr(92) + '|')} |" for key, value in rows.items() if value != ""
    ]
    return "\n".join(["| | |", "| --- | --- |", *lines, ""])
