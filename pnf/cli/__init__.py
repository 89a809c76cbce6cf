"""The command line ``pnf``."""

import sys


def main() -> None:
    """Run a command; a user's mistake ends in one line on standard error and a non-zero exit."""
    try:
        from pnf.cli.app import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "pnf":
            raise
        sys.exit(f"pnf: the command line needs {error.name}; install it with: pip install 'pnf[train]'")
    sys.exit(run())
