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
# What meets PyTorch's own interfaces: the dispatcher, autograd, transforms, compilation, optimisers. On two cores they
# take three minutes.
TESTS = [
    "tests/ops",
    "tests/flows/test_compile.py",
    "tests/flows/test_fast.py",
    "tests/flows/test_invertible.py",
    "tests/training/test_train.py::test_the_likelihood_of_held_out_images_grows",
    "tests/training/test_train.py::test_training_again_gives_the_same_bits",
]
TOOLS = ["hypothesis", "pytest>=9", "pytest-benchmark>=5", "pytest-timeout", "pytest-xdist"]


@nox.session
@nox.parametrize(["python", "torch"], PAIRS)
def tests(session: nox.Session, torch: str) -> None:
    """Install pnf beside a version of PyTorch and run the tests of TESTS; further arguments go to pytest."""
    session.install(f"torch=={torch}", ".[hub,train]", *TOOLS, env={"PNF_EXTENSION": "ON", "PNF_CUDA": "OFF"})
    # Triton's interpreter tells nothing of PyTorch.
    chosen = "not float16 and not float64 and not triton"
    threads = {"OMP_NUM_THREADS": "1"}
    session.run("pytest", "-n", "logical", "--dist", "loadfile", *TESTS, "-k", chosen, *session.posargs, env=threads)
