"""Triton's interpreter without the work that it repeats at every call of a function, most of its time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from triton.runtime import interpreter


@contextmanager
def interpreting(check_overflows: bool = False) -> Iterator[None]:
    """Patch the language of Triton once for each module of kernels, and restore it at the end.

    With ``check_overflows``, an overflow in a sum, a difference or a product of int32 is an error.
    """
    scopes: dict[int, Any] = {}

    def patch(function: Callable[..., Any]) -> Any:
        if id(function.__globals__) not in scopes:
            scopes[id(function.__globals__)] = patch_lang(function)
        return interpreter._LangPatchScope()

    patch_lang, interpreter._patch_lang = interpreter._patch_lang, patch
    builder = interpreter.interpreter_builder
    options, builder.options = (
        builder.options,
        interpreter.InterpreterOptions(debug=check_overflows, sanitize_overflow=check_overflows),
    )
    try:
        yield
    finally:
        builder.options = options
        interpreter._patch_lang = patch_lang
        for scope in reversed(scopes.values()):
            scope.restore()
