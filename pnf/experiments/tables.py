"""The tables of ``pnf reproduce``, in Markdown."""

import json
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from pnf.evaluation.anomaly import ALL, ANOMALY, MEASURES
from pnf.evaluation.upscaling import QUALITY
from pnf.experiments.rows import GLOW, MODELS, ROWS, TITLES
from pnf.experiments.table1 import results
from pnf.training import RunConfig
from pnf.training.build import build_flow, stage_dims


def table1(finished: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Write Table 1 from the results of its rows and models."""
    rows = [row for row in ROWS if row.name in finished]
    names = [*MODELS, *([GLOW] if any(GLOW in models for models in finished.values()) else [])]
    summary, details, made = [], [], []
    for row in rows:
        models = finished[row.name]
        best = min(result["bits_per_dim"] for result in models.values())
        cells = [_bits(models[name], best) if name in models else "" for name in names]
        paper = "" if row.paper is None else f"{row.paper[0]:.2f}, {row.paper[1]:.2f}"
        summary.append([row.title, *cells, _below(models.get("bounded", {})), paper])
        for name, result in models.items():
            memory = result["peak_memory_bytes"]
            details.append(
                [
                    row.title,
                    TITLES[name],
                    f"{result['nats']:,.1f} ± {result['nats_error']:.1f}",
                    _bits(result),
                    _below(result),
                    f"{result['parameters']:,}",
                    f"{result['steps']:,}",
                    f"{result['seconds']:,.0f}",
                    "" if memory is None else f"{memory / 2**20:,.0f} MiB",
                ]
            )
        runs = list(models.values())
        what = [
            f"{runs[0]['images']:,} test images",
            f"{runs[0]['budget_seconds'] / 60:.3g} minutes a model",
            *dict.fromkeys(_made(result) for result in runs),
        ]
        made.append(f"- {row.title}: {'; '.join(what)}")
    return "\n".join(
        [
            "# Table 1",
            "",
            "Held-out bits/dim, mean ± standard error over images; the difference to RealNVP is taken image by image.",
            "",
            *_table(["", *(TITLES[name] for name in names), "ours below RealNVP", "the paper's RealNVP, PNF"], summary),
            "",
            *_table(
                ["", "model", "nats", "bits/dim", "below RealNVP", "parameters", "steps", "seconds", "peak memory"],
                details,
            ),
            "",
            *made,
            "",
        ]
    )


def ablation(finished: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Write the variants of each row, the best first."""
    text = ["# Ablation", ""]
    for row in ROWS:
        if row.name not in finished:
            continue
        done = sorted(finished[row.name].values(), key=lambda result: -result["nats_per_dim"])
        first = done[0]
        text += [
            f"## {row.title}",
            "",
            f"Stage {first['stage']} alone, {first['budget_seconds'] / 60:.3g} minutes a variant; "
            f"{first['held_out']:,} held-out training images; {_made(first)}.",
            "",
            *_table(
                ["other than ours", "nats/dim of the stage", "above ours", "parameters", "steps", "seconds"],
                (
                    [
                        f"`{result['options']}`" if result["options"] else "**ours**",
                        f"{result['nats_per_dim']:.3f}",
                        f"{result['above_ours']:+.3f} ± {result['above_ours_error']:.3f}"
                        if "above_ours" in result
                        else "",
                        f"{result['parameters']:,}",
                        f"{result['steps']:,}",
                        f"{result['seconds']:,.0f}",
                    ]
                    for result in done
                ),
            ),
            "",
        ]
    return "\n".join(text)


def scales(out: Path) -> str:
    """Write the bits by scale of the results in a folder, and the results of ``pnf anomaly`` and ``pnf quality``."""
    stages = ["f0", "f1x", "f1y", "f2x", "f2y"]
    shares, scaled, scored, close = [], [], [], []
    for row, models in results(out).items():
        title = next(known.title for known in ROWS if known.name == row)
        for name, result in models.items():
            if name == GLOW:
                continue
            run = out / row / name
            who = [title, TITLES[name]]
            if name != "realnvp":
                share = list(result["stage_bits_per_dim"].values())
                shares.append([*who, *(f"{bits:.3f}" for bits in share)])
                scaled.append([*who, *(f"{bits:.3f}" for bits in _scaled(RunConfig.load(run), share))])
            if (run / ANOMALY).exists():
                for other, measures in _read(run / ANOMALY)["auroc"].items():
                    for measure, values in measures.items():
                        if name == "realnvp" and measure == "stage":
                            continue
                        # RealNVP's only stage is the whole image, like the last scale of a PNF.
                        by_stage = values | {stages[-1]: values["f"]} if "f" in values else values
                        cells = [f"{by_stage[stage]:.3f}" if stage in by_stage else "" for stage in [*stages, ALL]]
                        scored.append([*who, other, MEASURES[measure], *cells])
            if (run / QUALITY).exists():
                for resolution, methods in _read(run / QUALITY)["quality"].items():
                    cells = [f"{values['psnr']:.2f}, {values['ssim']:.3f}" for values in methods.values()]
                    close.append([*who, resolution, *cells, f"{methods['zero noise']['rmse']:.4f}"])
    text = [
        "# What the scales tell",
        "",
        "Share of each stage in the bits/dim of the image:",
        "",
        *_table(["", "model", *stages], shares),
        "",
        "Bits/dim of the image at the resolution of each stage:",
        "",
        *_table(["", "model", *stages], scaled),
    ]
    if scored:
        text += [
            "",
            "AUROC of telling held-out images of the row's set from foreign ones; above 0.5 the own ones score higher.",
            "Below 0.5 is the known failure of likelihoods: simple images are likely under a flow of complex ones.",
            "",
            *_table(["", "model", "foreign", "score", *stages, ALL], scored),
        ]
    if close:
        text += [
            "",
            "PSNR in dB and SSIM of held-out images that were downscaled and upscaled again, and the root mean square",
            "error of zero noise, which is that of the projection:",
            "",
            *_table(["", "model", "from", "bilinear", "bicubic", "zero noise", "mean of draws", "projection"], close),
        ]
    return "\n".join([*text, ""])


def _scaled(config: RunConfig, shares: list[float]) -> list[float]:
    """Bits/dim of the image at each resolution, from the stages' shares at full resolution."""
    with torch.device("meta"):
        # The stages' shares of the dimensions do not depend on the number of channels.
        sums = list(accumulate(stage_dims(build_flow(config, 1))))
    return [bits * sums[-1] / dims for bits, dims in zip(accumulate(shares), sums, strict=True)]


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def _made(result: dict[str, Any]) -> str:
    return (
        f"{result['hardware']}, threads: {result['threads']}, torch {result['torch']}, seed {result['seed']}, "
        f"commit {result['commit'] or 'unknown'}"
    )


def _bits(result: dict[str, Any], best: float | None = None) -> str:
    text = f"{result['bits_per_dim']:.3f} ± {result['bits_per_dim_error']:.3f}"
    return f"**{text}**" if result["bits_per_dim"] == best else text


def _below(result: dict[str, Any]) -> str:
    if "below_realnvp" not in result:
        return ""
    return f"{result['below_realnvp']:.3f} ± {result['below_realnvp_error']:.3f}"
