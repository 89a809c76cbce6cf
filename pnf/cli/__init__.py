"""The command line ``pnf``."""

import sys


def main() -> None:
    """Run a command; a user's mistake ends in one line on standard error and a non-zero exit."""
    try:
        from pnf.cli.app import run
    except ModuleNotFoundError as error:
        name = (error.name or "pnf").partition(".")[0]
        if name == "pnf":
            raise
        sys.exit(f"pnf: the command line needs {name}; install it with: pip install 'pnf[train]'")
    sys.exit(run())
