"""Run tests and benchmarks on the installed package, although ``python -m pytest`` puts the sources first."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent

if not any((ROOT / "pnf").glob("_C*")):  # the sources hold a module only after a build in place
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT]
