"""Tests over versions of Python and PyTorch: ``nox``, or ``nox -s "tests(python='3.12', torch='2.9.1')"``.

Pairs whose interpreter is missing are skipped. docs/versions.md has what was seen to pass.
"""

import nox

nox.options.default_venv_backend = "uv|virtualenv"

# Both ends of either range, and some between.
PAIRS = [
    ("3.11", "2.8.0"),
    ("3.12", "2.9.1"),
    ("3.11", "2.11.0"),
    ("3.11", "2.13.0"),
    ("3.12", "2.14.1"),
    ("3.14", "2.13.0"),
    ("3.13", "2.15.0"),
]
TESTS = ["tests/ops", "tests/flows", "tests/training/test_train.py"]
TOOLS = ["hypothesis", "pytest>=9", "pytest-benchmark>=5", "pytest-timeout", "pytest-xdist"]


@nox.session
@nox.parametrize(["python", "torch"], PAIRS)
def tests(session: nox.Session, torch: str) -> None:
    """Run the tests of ops, flows and training in float32; further arguments go to pytest."""
    session.install(f"torch=={torch}", ".[hub,train]", *TOOLS, env={"PNF_EXTENSION": "ON", "PNF_CUDA": "OFF"})
    chosen = "not float16 and not float64"
    if torch in ("2.8.0", "2.9.1"):  # their Triton is older than the kernels need
        chosen += " and not triton"
    threads = {"OMP_NUM_THREADS": "1"}
    session.run("pytest", "-n", "logical", "--dist", "loadfile", *TESTS, "-k", chosen, *session.posargs, env=threads)
