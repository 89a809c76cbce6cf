"""Fixtures of the tests of other libraries."""

from bridge_tests import flow as flow
from tensors import one_thread_and_one_seed as one_thread_and_one_seed
