"""Results as Markdown: ``python benchmarks/report.py FILE``.

FILE is of ``pytest benchmarks --benchmark-json FILE`` or of ``python benchmarks/models.py FILE``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = ["op", "passes", "arguments", "eager", "compiled", "pnf", "to eager", "to compiled", "GB/s", "of a copy"]


def time(seconds: float) -> str:
    unit, scale = ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    return f"{seconds * scale:.3g} {unit}"


def table(benchmarks: Sequence[dict[str, Any]]) -> str:
    """A line for each race that pnf took part in."""
    lines = []
    for info in (benchmark["extra_info"] for benchmark in benchmarks):
        if info.get("implementation") != "pnf":
            continue
        seconds = info["seconds"]
        lines.append(
            [
                info["op"],
                info["passes"],
                info["arguments"],
                *(time(seconds[name]) for name in ("reference", "compiled", "pnf")),
                f"{info['times_reference']:.2f}x",
                f"{info['times_compiled']:.2f}x",
                f"{info['gigabytes_per_second']:.1f}",
                f"{info['share_of_floor']:.0%}",
            ]
        )
    return markdown(COLUMNS, lines, left=3)


def models(results: dict[str, Any]) -> str:
    """The tables of ``models.py``."""
    machine = results["machine"]
    parts = [
        f"- {machine['processor']}, {machine['threads']} threads\n"
        f"- pnf {machine['pnf']}, torch {machine['torch']}, Python {machine['python']}"
    ]
    cells = []
    for row in results["rows"]:
        times: dict[str, float] = row["seconds"]
        ours = next(seconds for name, seconds in times.items() if name.startswith("pnf"))
        for i, (name, seconds) in enumerate(times.items()):
            cells.append(["" if i else row["name"], name, time(seconds), f"{ours / seconds:.2f}"])
    if cells:
        parts.append(markdown(["whole model", "", "time", "pnf / this"], cells, left=2))
    if results["memory"]:
        cells = [[r["memory"], str(r["couplings"]), f"{r['mib']:.1f}", time(r["seconds"])] for r in results["memory"]]
        parts.append(markdown(["memory", "couplings", "peak, MiB", "step"], cells, left=1))
    if results["scaling"]:
        pixels = [r["seconds"] / (r["batch"] * r["size"] ** 2) for r in results["scaling"]]
        cells = [
            [f"{r['size']} x {r['size']}", str(r["batch"]), time(r["seconds"]), f"{each / pixels[0]:.2f}"]
            for r, each in zip(results["scaling"], pixels, strict=True)
        ]
        parts.append(markdown(["images", "batch", "step", "time per pixel"], cells, left=1))
    if "first_step" in results:
        parts.append(f"From the import of pnf to the end of a first step: {results['first_step']:.1f} s.")
    return "\n\n".join(parts)


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """A table whose first columns are flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    ruler = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    rows = [
        [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in [head, *lines]
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ruler, *rows[1:]])


def report(results: dict[str, Any]) -> str:
    machine, commit = results["machine_info"], results["commit_info"]
    versions = f"pnf {machine['pnf']}, torch {machine['torch']}, Python {machine['python_version']}"
    changed = ", with uncommitted changes" if commit["dirty"] else ""
    return "\n".join(
        [
            f"- {machine['cpu'].get('brand_raw', machine['machine'])}, {machine['threads']} threads"
            + (f"; {machine['cuda']}" if machine["cuda"] else ""),
            f"- {versions}",
            f"- commit {commit['id']}{changed}, {results['datetime'][:10]}",
            "",
            'Medians of interleaved rounds. "of a copy" is the time in which the device copies as many bytes as the op'
            " has to read and write at least, over the time of pnf.",
            "",
            table(results["benchmarks"]),
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    found = json.loads(parser.parse_args().results.read_text())
    print(report(found) if "benchmarks" in found else models(found))
