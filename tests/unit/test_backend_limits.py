"""A daemon takes the descriptors that it may have."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest

from kpoll.backend.limits import raise_descriptor_limit

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def limits() -> Iterator[tuple[int, int]]:
    """Give the limits as they are, and see that they are so again."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one(limits: tuple[int, int]) -> None:
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_a_host_that_refuses_keeps_its_limit(limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_which: int, _limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    with monkeypatch.context() as patch:
        patch.setattr(resource, "setrlimit", refuse)
        raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits
