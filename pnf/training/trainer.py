"""The training loop.

It builds on Lightning Fabric, which brings devices, strategies, checkpoints and loggers, but no loop. The loop of
Lightning's Trainer would count a step of each optimiser as a step of the run, and would resume inside an epoch only
with loaders that save their state. Here each stage has its own trainer, and a batch is a function of its step.
"""

import itertools
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from rich.console import Console
from torch import Tensor, nn

from pnf._signals import SIGHUP, STOPPING
from pnf.cuda_graphs import GraphedStep
from pnf.data.images import Examples
from pnf.files import remove_unfinished
from pnf.flows.saving import CONFIG_NAME as CONFIG_FILE
from pnf.flows.saving import WEIGHTS_NAME
from pnf.training import processes
from pnf.training.batches import VALIDATION_NOISE, Batch, Batches, hold_out, seeded
from pnf.training.build import Flow, build_flow, stage_dims, stage_inputs, stage_modules, stage_names
from pnf.training.checkpoints import AtomicCheckpointIO
from pnf.training.config import CONFIG_NAME, MODEL, Interrupted, RunConfig, RunError
from pnf.training.cuda_streams import Branches
from pnf.training.fingerprints import check_training, remember
from pnf.training.hardware import exact_arithmetic, tensor_float_32
from pnf.training.memory_check import check_memory
from pnf.training.progress import StepBar, bits_of, tracker
from pnf.training.stage_trainer import StageTrainer, schedule

LOGS, CHECKPOINTS = "logs", "checkpoints"


def train(
    config: RunConfig,
    images: Examples,
    folder: Path,
    *,
    stages: Sequence[str] | None = None,
    resume: bool = False,
    accelerator: str = "auto",
    console: Console | None = None,
) -> list[str]:
    """Train the stages of a flow, together or apart, in the folder of a run.

    The folder holds the settings, a checkpoint of each stage, and logs. Once every stage is trained, it also holds the
    flow with the averaged weights in ``model/``. Under ``torchrun`` the processes share the batches of a step, and the
    first one writes. The results are those of one process, up to the order of sums.

    Args:
        config: the settings.
        images: the training images, ``[N, C, size, size]`` uint8, with labels if the settings name classes; or real
            data, standardised.
        folder: the folder of the run.
        stages: names of the stages to train, all by default. Their results do not depend on the other stages.
        resume: whether to resume from the checkpoints in the folder.
        accelerator: Fabric's accelerator: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        console: the console for progress; ``None`` shows none.

    Returns:
        The names of the stages that still need training.

    Raises:
        RunError: settings, folder, checkpoints and data do not fit together, the memory is too small, or a loss is not
            finite.
        Interrupted: the process received SIGINT, SIGTERM or SIGHUP. Everything is saved.
    """
    if images.classes != (config.classes or ()):
        raise RunError(f"the run has the classes {config.classes or 'none'}, and its images {images.classes or 'none'}")
    flow = build_flow(config, images.shape[0])
    names = stage_names(flow)
    chosen = _choose(names, stages)
    if config.validation >= len(images):
        raise RunError(
            f"validation must be less than the {len(images)} training {images.noun}, got {config.validation}"
        )
    if config.keep == "best" and not config.validation:
        raise RunError("the best weights are chosen by held-out images: give --validation, or --keep last")
    check_memory(config, images.shape[0], accelerator, tracker("Estimating the memory", console))
    if config.accumulate % processes.size():
        raise RunError(f"--accumulate must be a multiple of the {processes.size()} processes, got {config.accumulate}")
    loggers: list[Logger] = []
    if processes.rank() == 0:
        _claim(folder, config, images, chosen, resume or processes.restarted())
        # Each row is written at once, so that curves can be drawn during the run.
        csv_logger = CSVLogger(folder, name=LOGS, version=_new_version(folder), flush_logs_every_n_steps=1)
        loggers = [csv_logger]
        # TensorBoard only takes paths in UTF-8. Python decodes the bytes of others as surrogates.
        if not any("\udc80" <= c <= "\udcff" for c in str(folder)):
            loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))

    exact_arithmetic()
    fabric = processes.make_fabric(accelerator, plugins=[AtomicCheckpointIO()], loggers=loggers)
    fabric.launch()
    loop = _loop(config, flow, images, chosen, fabric, folder, console)
    if fabric.is_global_zero:
        _tidy(folder, chosen)
    for trainer in loop.trainers:
        path = checkpoint_path(folder, trainer.name)
        if path.exists():
            trainer.load(path)
    if len({tuple(steps) for steps in processes.gather([trainer.step for trainer in loop.trainers])}) > 1:
        raise RunError(f"the processes find different checkpoints in {folder}: it must be one folder for all of them")
    loop.run()
    missing = export(config, images.shape[0], folder) if fabric.is_global_zero else []
    return processes.gather(missing)[0]


def step_seconds(
    configs: Sequence[RunConfig],
    images: Examples,
    *,
    seconds: float,
    stages: Sequence[str] | None = None,
    accelerator: str = "auto",
    others: Sequence[Callable[[int], None]] = (),
) -> list[float]:
    """Measure the seconds of a step of each run on this machine: the median over steps that the runs take by turns.

    They take turns because a machine's speed drifts. The trained weights are discarded.

    Args:
        configs: the settings of the runs.
        images: the training images of all runs.
        seconds: the time for measuring each run. At least three steps of each are measured.
        stages, accelerator: as for :func:`train`.
        others: functions that take a step, by its number, of models that are no runs; their seconds come last.
    """
    exact_arithmetic()
    fabric = processes.make_fabric(accelerator, plugins=[], loggers=[])
    fabric.launch()

    def of_run(config: RunConfig) -> Callable[[int], None]:
        flow = build_flow(config, images.shape[0])
        loop = _loop(config, flow, images, _choose(stage_names(flow), stages), fabric, Path(), None)
        return lambda step: loop.train(loop.batches(step), loop.trainers)

    takers = [*map(of_run, configs), *others]
    taken: list[list[float]] = [[] for _ in takers]
    # The first steps, which fill caches and allocate memory, are not measured.
    for step in itertools.count(-1):
        for take, times in zip(takers, taken, strict=True):
            started = time.perf_counter()
            take(step + 1)
            if fabric.device.type == "cuda":
                torch.cuda.synchronize(fabric.device)
            if step >= 0:
                times.append(time.perf_counter() - started)
        if step >= 2 and sum(map(sum, taken)) >= seconds * len(takers):
            break
    return [statistics.median(times) for times in taken]


class _Loop:
    """The loop over the steps of several stage trainers."""

    def __init__(
        self,
        config: RunConfig,
        flow: Flow,
        names: list[str],
        trainers: list[StageTrainer],
        batches: Batches,
        validation: Batch,
        fabric: Fabric,
        folder: Path,
        console: Console | None,
    ) -> None:
        self.config, self.flow, self.names, self.trainers, self.fabric = config, flow, names, trainers, fabric
        # DistributedDataParallel adds gradients up on the stream that it was built on.
        self.branches = Branches(fabric.device, len(trainers) if fabric.world_size == 1 else 0)
        self.batches, self.validation, self.folder, self.console = batches, validation, folder, console
        self.started, self.images = time.perf_counter(), 0
        self.sums = {trainer.name: torch.zeros((), device=fabric.device) for trainer in trainers}
        self.counts = dict.fromkeys(self.sums, 0)
        self.size, self.rank = fabric.world_size, fabric.global_rank
        self.now = torch.zeros((), dtype=torch.int64, device=fabric.device)
        self._graphed: tuple[list[StageTrainer], Callable[..., None]] | None = None
        # The first step with a loss that is not finite. Kept on the device and read only for logs, to avoid a sync.
        self.broken = {name: torch.full((), config.steps, device=fabric.device) for name in self.sums}

    def run(self) -> None:
        title = " ".join(trainer.name for trainer in self.trainers)
        first = min(trainer.step for trainer in self.trainers)
        with (
            _one_report(),
            StepBar(title, self.config.steps, self.console, bits=self.config.support == "unit") as bar,
            _stop_signals(self.size == 1) as received,
        ):
            bar.move(first)
            for step in range(first, self.config.steps):
                # After a kill some trainers may be ahead. They wait for the others.
                active, done = [trainer for trainer in self.trainers if trainer.step == step], step + 1
                try:
                    self.train(self.batches(step), active)
                except ValueError as error:
                    # A flow refuses NaN and images outside [0, 1].
                    raise RunError(f"step {done} cannot be made, and the last checkpoint is sound: {error}") from None
                except RuntimeError as error:
                    if processes.lost(error):
                        raise RunError(
                            "another process of this run has ended, or cannot be reached any more; go on with: "
                            f"pnf train --resume {self.folder}"
                        ) from None
                    raise
                stop = self._asked_to_stop(received, done)
                if done % self.config.log_every == 0 or done == self.config.steps:
                    self._log(done, bar)
                if (done % self.config.validate_every == 0 or done == self.config.steps) and len(self.validation.x):
                    self._validate(done, active, bar)
                if done % self.config.checkpoint_every == 0 or done == self.config.steps or stop:
                    self._save(active)
                bar.move(done)
                if stop and done < self.config.steps:
                    self._flush()
                    raise Interrupted(self.folder, done, stop)
        self._flush()

    def _asked_to_stop(self, received: list[int], step: int) -> int:
        """The received signal, or 0. The processes agree on it when they write logs."""
        if self.size == 1:
            return received[0] if received else 0
        if step % self.config.log_every:
            return 0
        asked = torch.tensor(received[0] if received else 0, device=self.fabric.device)
        return int(processes.reduce(self.fabric, asked, "max"))

    def train(self, batch: Batch, active: list[StageTrainer]) -> None:
        """Take a step of some trainers on a batch."""
        own = self.config.accumulate // self.size
        parts = batch.split(self.config.batch_size)[self.rank * own : (self.rank + 1) * own]
        tensors = [tensor for part in parts for tensor in part if tensor is not None]
        if self.fabric.device.type == "cuda":
            tensors = [tensor.pin_memory() for tensor in tensors]  # the copies need not wait for the GPU
        for trainer in active:
            trainer.prepare()
        if active:
            self.now.fill_(active[0].step + 1)
        with tensor_float_32(self.config.precision == "tf32"):
            self._stepper(active)(*self.fabric.to_device(tensors))
        for trainer in active:
            trainer.step += 1
            self.counts[trainer.name] += 1
        self.images += len(batch.x)

    def _stepper(self, active: list[StageTrainer]) -> Callable[..., None]:
        """What takes a step of some trainers on tensors: a CUDA graph, if this is the only process."""
        if self._graphed is None or self._graphed[0] != active:
            count = self.config.accumulate // self.size

            def take(*tensors: Tensor) -> None:
                width = len(tensors) // count
                self._take(active, [Batch(*tensors[i : i + width]) for i in range(0, len(tensors), width)])

            alone = self.size == 1
            self._graphed = active, GraphedStep(take, *(t.optimizer for t in active)) if alone else take
        return self._graphed[1]

    def _take(self, active: list[StageTrainer], parts: Sequence[Batch]) -> None:
        """Take a step of some trainers on the parts of a batch, all of it on the device."""
        inputs = [self._inputs(part) for part in parts]
        for i, trainer in enumerate(active):
            with self.branches.branch(i):
                nll = trainer.train_step([part[trainer.name] for part in inputs])
                self.sums[trainer.name] += nll
                broken = self.broken[trainer.name]
                torch.where(nll.isfinite(), broken, torch.minimum(broken, self.now), out=broken)
        self.branches.join()

    def _inputs(self, batch: Batch) -> dict[str, Batch]:
        """What each stage sees of a batch on the device."""
        images = stage_inputs(self.flow, batch.x)
        return {name: Batch(image, batch.condition) for name, image in zip(self.names, images, strict=True)}

    def _log(self, step: int, bar: StepBar) -> None:
        metrics: dict[str, float] = {}
        total, dims = 0.0, 0
        for trainer in self.trainers:
            if not self.counts[trainer.name]:
                continue
            nats = -processes.reduce(self.fabric, self.sums[trainer.name], "mean").item() / self.counts[trainer.name]
            if not math.isfinite(nats):
                broken = int(processes.reduce(self.fabric, self.broken[trainer.name], "min"))
                raise RunError(
                    f"the loss of stage {trainer.name} is not finite at step {broken}; the last checkpoint is sound: "
                    "train again with a lower --lr or --clip"
                )
            metrics[f"train/{trainer.name}/nats_per_dim"] = nats / trainer.dims
            total, dims = total + nats, dims + trainer.dims
            self.sums[trainer.name].zero_()
            self.counts[trainer.name] = 0
        speed = self.images / (time.perf_counter() - self.started)
        self.started, self.images = time.perf_counter(), 0
        if dims:
            metrics |= {
                "train/nats_per_dim": total / dims,
                **self._bits("train", total / dims),
                "train/images_per_second": speed,
                "learning_rate": self.config.lr * schedule(self.config, step - 1),
            }
            bar.show(total / dims, speed)
            self._write(metrics, step)

    @torch.no_grad()
    def _validate(self, step: int, active: list[StageTrainer], bar: StepBar) -> None:
        sums = {trainer.name: torch.zeros((), device=self.fabric.device) for trainer in active}
        for part in self.validation.split(self.config.batch_size)[self.rank :: self.size]:
            inputs = self._inputs(self.fabric.to_device(part))
            for trainer in active:
                sums[trainer.name] += trainer.averaged.log_prob(*inputs[trainer.name]).sum()  # type: ignore[operator]
        totals = {name: processes.reduce(self.fabric, value, "sum").item() for name, value in sums.items()}
        nats = {name: total / len(self.validation.x) for name, total in totals.items()}
        for trainer in active:
            trainer.validated(nats[trainer.name])
        metrics = {f"validation/{trainer.name}/nats_per_dim": nats[trainer.name] / trainer.dims for trainer in active}
        if active:
            mean = sum(nats.values()) / sum(trainer.dims for trainer in active)
            metrics |= {"validation/nats_per_dim": mean, **self._bits("validation", mean)}
            bar.report(step, mean)
            self._write(metrics, step)
        self.started, self.images = time.perf_counter(), 0

    def _bits(self, split: str, nats_per_dim: float) -> dict[str, float]:
        """The bits/dim of images."""
        unit = self.config.support == "unit"
        return {f"{split}/bits_per_dim": bits_of(nats_per_dim)} if unit else {}

    def _write(self, metrics: dict[str, float], step: int) -> None:
        try:
            self.fabric.log_dict(metrics, step)
        except ValueError as error:
            # Fabric's TensorBoardLogger also turns a full disk into a ValueError.
            raise error.__cause__ if isinstance(error.__cause__, OSError) else error from None

    def _save(self, active: list[StageTrainer]) -> None:
        for trainer in active:
            # Otherwise a checkpoint with weights that are not finite would replace the last sound one.
            if not all(p.isfinite().all() for p in trainer.stage.parameters()):
                raise RunError(
                    f"the weights of stage {trainer.name} are not finite after step {trainer.step}; the last "
                    "checkpoint is sound: train again with a lower --lr or --clip"
                )
            trainer.save(checkpoint_path(self.folder, trainer.name))

    def _flush(self) -> None:
        for logger in self.fabric.loggers:
            logger.finalize("success")


def _loop(
    config: RunConfig,
    flow: Flow,
    images: Examples,
    chosen: list[str],
    fabric: Fabric,
    folder: Path,
    console: Console | None,
) -> _Loop:
    """Make the loop over the chosen stages of a flow."""
    training, held_out = hold_out(images, config.validation, config.seed)
    if config.precision == "bf16":
        flow.set_network_dtype(torch.bfloat16)
    names = stage_names(flow)
    trainers = [
        StageTrainer(name, stage, dims, config, fabric)
        for name, stage, dims in zip(names, stage_modules(flow), stage_dims(flow), strict=True)
        if name in chosen
    ]
    batches = Batches(training, config.batch_size * config.accumulate, config.seed, flip=config.flip)
    validation = Batch(held_out.continuous(seeded(config.seed, VALIDATION_NOISE)), held_out.labels)
    return _Loop(config, flow, names, trainers, batches, validation, fabric, folder, console)


def _choose(names: list[str], stages: Sequence[str] | None) -> list[str]:
    unknown = [name for name in stages or () if name not in names]
    if unknown:
        raise RunError(f"there is no stage {', '.join(unknown)}; there are {', '.join(names)}")
    return [name for name in names if stages is None or name in stages]


def _claim(folder: Path, config: RunConfig, images: Examples, chosen: list[str], resume: bool) -> None:
    """Create the folder of a new run, or check that the run in it is this one."""
    if (folder / CONFIG_NAME).exists():
        if RunConfig.load(folder) != config:
            raise RunError(f"{folder} holds a run with other settings: choose another --out")
        if not resume and any(checkpoint_path(folder, name).exists() for name in chosen):
            raise RunError(f"{folder} holds this run already: go on with --resume {folder}, or choose another --out")
        check_training(folder, config, images)
        return
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is not a folder: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    remember(folder, config, images)
    config.save(folder)


def _tidy(folder: Path, names: list[str]) -> None:
    """Remove temporary files that a kill left."""
    files = [folder / MODEL / CONFIG_FILE, folder / MODEL / WEIGHTS_NAME]
    for path in [*files, *(checkpoint_path(folder, name) for name in names)]:
        remove_unfinished(path)


def checkpoint_path(folder: Path, name: str) -> Path:
    """The file of a stage's checkpoint."""
    return folder / CHECKPOINTS / f"{name}.ckpt"


def _new_version(folder: Path) -> int:
    """Create a folder for logs that no other process uses, even if both start at once, and return its number."""
    version = 0
    while True:
        try:
            (folder / LOGS / f"version_{version}").mkdir(parents=True)
        except FileExistsError:
            version += 1
        else:
            return version


def export(config: RunConfig, channels: int, folder: Path) -> list[str]:
    """Write the flow with the averaged weights to keep if every stage is trained. Return the untrained stages."""
    flow = build_flow(config, channels)
    named = zip(stage_names(flow), stage_modules(flow), strict=True)
    missing = [name for name, stage in named if not load_stage(config, stage, folder, name)]
    if not missing:
        flow.save_pretrained(folder / MODEL)
    return missing


def load_stage(config: RunConfig, stage: nn.Module, folder: Path, name: str) -> bool:
    """Load a stage's averaged weights to keep from a run's folder. Return whether its training is finished."""
    path = checkpoint_path(folder, name)
    checkpoint: dict[str, Any] = AtomicCheckpointIO().load_checkpoint(path) if path.exists() else {"step": 0}
    if checkpoint["step"] < config.steps:
        return False
    stage.load_state_dict(checkpoint["best" if config.keep == "best" else "averaged"])
    return True


@torch.no_grad()
def held_out_log_probs(config: RunConfig, images: Examples, folder: Path, name: str) -> Tensor:  # [validation], float64
    """The log-likelihood of each held-out training image under one trained stage of a run, in nats.

    Raises:
        RunError: the training of the stage is not finished.
    """
    flow = build_flow(config, images.shape[0])
    index = stage_names(flow).index(name)
    stage = stage_modules(flow)[index].eval()
    if not load_stage(config, stage, folder, name):
        raise RunError(f"stage {name} in {folder} has not been trained to its end")
    _, held_out = hold_out(images, config.validation, config.seed)
    x = held_out.continuous(seeded(config.seed, VALIDATION_NOISE))
    parts = Batch(x, held_out.labels).split(config.batch_size)
    return torch.cat(
        [stage.log_prob(stage_inputs(flow, part.x)[index], part.condition).double() for part in parts]  # type: ignore[operator]
    )


@contextmanager
def _one_report() -> Iterator[None]:
    """Do not print errors of threads that cannot write.

    TensorBoard raises its thread's error in the next call, and the progress bar does not matter.
    """
    previous = threading.excepthook
    silent = OSError, UnicodeError
    threading.excepthook = lambda args: None if issubclass(args.exc_type, silent) else previous(args)
    try:
        yield
    finally:
        threading.excepthook = previous


@contextmanager
def _stop_signals(alone: bool) -> Iterator[list[int]]:
    """Let SIGINT, SIGTERM and SIGHUP end the run after the current step, and a second SIGINT or SIGTERM at once.

    A second SIGHUP does not, since a closing terminal sends several. Under ``nohup`` SIGHUP stays ignored. Under
    torchrun every process already receives the terminal's signal, so a second one does not mean "stop now".
    """
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if received and alone and number != SIGHUP:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return
    numbers = [number for number in STOPPING if number != SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
