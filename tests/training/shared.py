"""The work of each process in tests/training/test_processes.py: ``torchrun ... shared.py FOLDER``."""

import json
import sys
from pathlib import Path

import torch

from pnf.cli import main
from pnf.data import load
from pnf.evaluation import evaluate, load_run
from pnf.training import RunConfig, processes, train

torch.set_num_threads(1)
folder = Path(sys.argv[1])
images = load("fashion-mini", "train", 8, limit=200)
for path in sorted(folder.glob("*/run.json")):
    config = RunConfig.load(path.parent)
    labelled = load("fashion-mini", "train", 8, limit=200, labels=True) if config.labelled else images
    train(config, labelled, path.parent / "shared", accelerator="cpu")
    _, flow = load_run(path.parent / "shared")
    result = evaluate(flow, load("fashion-mini", "test", 8, limit=101, labels=config.labelled), batch_size=10)
    if processes.rank() == 0:
        path.with_name("result.json").write_text(json.dumps([result.nats, result.stage_nats]))
out = str(folder / "dense/samples.png")
sys.argv = ["pnf", "sample", str(folder / "dense/shared"), "-n", "600", "--device", "cpu", "--out", out]
main()
