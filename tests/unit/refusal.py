"""What a back-end that can't be opened is refused with."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pytest

from kpoll.backend.errors import KpollError
from kpoll.backend.net_options import parse_backend

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

T = TypeVar("T")


def parsed(text: str, kind: type[T]) -> T:
    """Parse what --backend has for this kind of back-end."""
    backend = parse_backend(text)
    assert isinstance(backend, kind)
    return backend


def refusal(opened: AbstractContextManager[object], backend: object) -> str:
    """Return the one line that is said when a back-end can't be opened; it names the back-end as --backend has it."""
    with pytest.raises(KpollError) as error, opened:
        pass
    line = str(error.value)
    assert f"--backend {backend}" in line
    assert "\n" not in line
    return line
