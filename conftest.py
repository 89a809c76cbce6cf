"""Tests and benchmarks run against the installed package, even where ``python -m pytest`` puts its sources in front."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent

if not any((ROOT / "pnf").glob("_C*")):  # which a build in place has
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT]
