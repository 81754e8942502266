"""Check the shapes in signatures while the tests run."""

import inspect
from collections.abc import Callable
from typing import get_args

from beartype import beartype
from jaxtyping import AbstractArray


def checked(function: Callable[..., object]) -> Callable[..., object]:
    """Beartype for the annotations that name an array; all others are pyright's to check, before anything runs."""
    shapes = {name: hint for name, hint in function.__annotations__.items() if _names_an_array(hint)}
    function.__annotations__ = shapes
    return beartype(function)


def _names_an_array(hint: object) -> bool:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(_names_an_array(part) for part in get_args(hint))
