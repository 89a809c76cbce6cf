"""Fixtures of tiny runs and their results."""

from tiny_runs import _one_thread as _one_thread
from tiny_runs import fabric as fabric
from tiny_runs import finished as finished
from tiny_runs import images as images
from tiny_runs import results as results
from tiny_runs import tiny as tiny
