"""Tables of benchmark results in Markdown: ``python benchmarks/report.py FILE ...``.

A FILE is from ``pytest benchmarks --benchmark-json FILE`` or ``python benchmarks/models.py FILE``. With ``--save`` the
page goes to ``benchmarks/results/MACHINE/DATE-COMMIT.md``, the place of published results.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).with_name("results")

COLUMNS = ["op", "passes", "arguments", "eager", "compiled", "pnf", "to eager", "to compiled", "GB/s", "of a copy"]


class Origin(NamedTuple):
    """The origin of results. Files of one page must have the same origin.

    Attributes:
        device: the GPU, or the CPU and its threads.
        versions: the versions of pnf, PyTorch and Python.
        commit, date: the commit of the sources, and the date of the measurement.
    """

    device: str
    versions: str
    commit: str
    date: str

    def lines(self) -> str:
        return f"- {self.device}\n- {self.versions}\n- commit {self.commit}, {self.date}"

    def page(self) -> Path:
        """The file of the page, relative to the folder of all results."""
        machine = re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-")
        return Path(machine, f"{self.date}-{self.commit[:7]}.md")


def origin(results: dict[str, Any]) -> Origin:
    """The origin of results of either kind."""
    if "benchmarks" in results:
        machine = results["machine_info"]
        gpu, cpu = machine["cuda"], machine["cpu"].get("brand_raw", machine["machine"])
        python, commit, date = machine["python_version"], results["commit_info"], results["datetime"][:10]
    else:
        machine, commit, date = results["machine"], results["commit_info"], results["date"]
        gpu, cpu, python = machine["cuda"], machine["processor"], machine["python"]
    return Origin(
        gpu or f"{cpu}, {machine['threads']} threads",
        f"pnf {machine['pnf']}, torch {machine['torch']}, Python {python}",
        commit["id"] + (" with uncommitted changes" if commit["dirty"] else ""),
        date,
    )


def time(seconds: float) -> str:
    unit, scale = ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    return f"{seconds * scale:.3g} {unit}"


def table(benchmarks: Sequence[dict[str, Any]]) -> str:
    """A row for each race with pnf."""
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
    parts = []
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
    """A table with its first columns flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    ruler = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    rows = [
        [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in [head, *lines]
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ruler, *rows[1:]])


def ops(results: dict[str, Any]) -> str:
    """The table of a run of pytest-benchmark."""
    explanation = (
        'Medians of interleaved rounds. "of a copy" is the time in which the device copies as many bytes as the op has'
        " to read and write at least, over the time of pnf."
    )
    return f"{explanation}\n\n{table(results['benchmarks'])}"


def report(files: Sequence[dict[str, Any]]) -> str:
    """A page of results from one machine, one commit and one day.

    Raises:
        ValueError: the results have several origins.
    """
    origins = {origin(results) for results in files}
    if len(origins) != 1:
        raise ValueError("report: results of one page must have one origin, got " + "; ".join(map(str, origins)))
    (one,) = origins
    parts = [f"# {one.device}, {one.date}", one.lines()]
    for results in files:
        parts += ["## Ops", ops(results)] if "benchmarks" in results else ["## Whole models", models(results)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--save", action="store_true", help=f"write the page into {RESULTS.parent.name}/{RESULTS.name}")
    options = parser.parse_args()
    files = [json.loads(path.read_text()) for path in options.results]
    page = report(files) + "\n"
    if not options.save:
        print(page, end="")
        return
    target = RESULTS / origin(files[0]).page()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page)
    print(target)


if __name__ == "__main__":
    main()
