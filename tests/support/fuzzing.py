"""The loop of the fuzzers."""

from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

T = TypeVar("T")


def fuzz(strategy: st.SearchStrategy[T], check: Callable[[T], None], cases: int, start: int) -> None:
    """Check a number of cases and raise for the smallest failing one. The same start gives the same cases."""

    @seed(start)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(case: T) -> None:
        check(case)

    run()
