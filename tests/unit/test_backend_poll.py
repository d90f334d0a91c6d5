"""Which strategy --poll takes on which kernel, and how it tells why."""

from __future__ import annotations

import errno

import pytest

from kpoll.backend.errors import KpollError
from kpoll.backend.poll import choose_poll
from kpoll.kernel.probe import KernelFacts

PATCHED = KernelFacts(patch=0, eventfd_busy_poll_us=50)
MODULE = KernelFacts(module=0, net_busy_poll_us=50)
POLLING_OFF = KernelFacts(patch=0, module=0, net_busy_poll_us=0, eventfd_busy_poll_us=0)


@pytest.mark.parametrize(
    ("kernel", "strategy", "why"),
    [
        (PATCHED, "kernel", ("has EVENTFD_SET_POLL",)),
        (KernelFacts(patch=0, net_busy_poll_us=50), "kernel", ("has EVENTFD_SET_POLL",)),
        (MODULE, "module", ("module is there", "no EVENTFD_SET_POLL")),
        (POLLING_OFF, "user", ("fs.eventfd_busy_poll is 0: the administrator", "net.core.busy_poll is 0: the admin")),
        (KernelFacts(patch=0, eventfd_busy_poll_us=0), "user", ("net.core.busy_poll can't be read", "isn't loaded")),
        (KernelFacts(patch=0, net_busy_poll_us=0), "user", ("fs.eventfd_busy_poll can't be read",)),
        (KernelFacts(module=0), "user", ("no EVENTFD_SET_POLL", "net.core.busy_poll can't be read")),
        (KernelFacts(patch=errno.EPERM), "user", ("may not use the EVENTFD_SET_POLL", "isn't loaded")),
        (KernelFacts(patch=errno.ENOMEM, module=errno.EMFILE), "user", ("Cannot allocate", "Too many open files")),
        (KernelFacts(module=errno.EACCES), "user", ("no EVENTFD_SET_POLL", "may not open")),
        (KernelFacts(), "user", ("no EVENTFD_SET_POLL", "isn't loaded")),
    ],
    ids=str,
)
def test_auto_takes_the_best_that_the_host_has_and_allows_and_knows_why_not_better(
    kernel: KernelFacts, strategy: str, why: tuple[str, ...]
) -> None:
    poll = choose_poll("auto", 50, kernel)
    assert (poll.strategy, poll.max_us, poll.warning) == (strategy, 50, None)
    for words in why:
        assert words in poll.why


@pytest.mark.parametrize(
    ("asked", "kernel"),
    [("kernel", PATCHED), ("module", MODULE), ("kernel", KernelFacts(patch=0)), ("module", KernelFacts(module=0))],
)
def test_what_is_asked_for_and_there_is_taken(asked: str, kernel: KernelFacts) -> None:
    poll = choose_poll(asked, 50, kernel)
    assert (poll.strategy, poll.why, poll.max_us, poll.warning) == (asked, "asked for", 50, None)


@pytest.mark.parametrize(
    ("asked", "kernel", "remedy"),
    [
        ("kernel", POLLING_OFF, "sysctl fs.eventfd_busy_poll=100"),
        ("module", POLLING_OFF, "sysctl net.core.busy_poll=100"),
    ],
)
def test_what_is_asked_for_works_but_warns_where_the_administrator_has_polling_off(
    asked: str, kernel: KernelFacts, remedy: str
) -> None:
    poll = choose_poll(asked, 50, kernel)
    assert poll.strategy == asked
    assert poll.warning is not None
    assert remedy in poll.warning


@pytest.mark.parametrize(
    ("asked", "kernel", "words"),
    [
        ("kernel", KernelFacts(patch=errno.EPERM), ("may not use the EVENTFD_SET_POLL", "policy", "--poll user")),
        ("kernel", MODULE, ("no EVENTFD_SET_POLL", "patch", "--poll module", "kernel/README.md")),
        ("module", PATCHED, ("No such file or directory", "modprobe eventfd_poll", "kernel/README.md")),
        ("module", KernelFacts(module=errno.EACCES), ("may not open /dev/eventfd_poll", "kernel/README.md")),
    ],
)
def test_what_the_host_lacks_is_one_line_that_says_how_to_get_it(
    asked: str, kernel: KernelFacts, words: tuple[str, ...]
) -> None:
    with pytest.raises(KpollError) as error:
        choose_poll(asked, 50, kernel)
    assert error.value.exit_code == 1
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("asked", ["auto", "kernel", "module", "off"])
def test_no_time_to_poll_is_no_polling(asked: str) -> None:
    both = KernelFacts(patch=0, module=0, net_busy_poll_us=50, eventfd_busy_poll_us=50)
    poll = choose_poll(asked, 0, both)
    assert (poll.strategy, poll.max_us, poll.warning) == ("off", 0, None)


def test_off_never_spins_whatever_the_budget() -> None:
    assert choose_poll("off", 50, KernelFacts()).max_us == 0
