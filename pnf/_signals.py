"""The signals that ask a process to stop."""

import signal

SIGHUP = getattr(signal, "SIGHUP", None)
"""That of a closing terminal. Windows has none."""

STOPPING = tuple(number for number in (signal.SIGINT, signal.SIGTERM, SIGHUP) if number is not None)
