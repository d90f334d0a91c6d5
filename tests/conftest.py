"""For all tests: in CI (CI=true) a skipped test is a failed one.

CI is where everything can run; a test that skips there tests nothing, and nobody notices. What CI's machine can't
have whatever is installed says so, with `@pytest.mark.ci_may_skip("why")`.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

IN_CI = os.environ.get("CI", "").lower() in {"true", "1"}


def pytest_configure(config: pytest.Config) -> None:
    """Register the one mark that allows a skip in CI, and hear Ctrl-C.

    A shell starts background jobs with SIGINT ignored, and children inherit that: tests of Ctrl-C would test nothing.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "ci_may_skip(why): CI's machine cannot run this, whatever is installed")


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"CI must run this test, and it was skipped. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure, unless the test is marked."""
    report = yield
    if IN_CI and item.get_closest_marker("ci_may_skip") is None:
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole file into a failure."""
    report = yield
    if IN_CI:
        _fail_if_skipped(report)
    return report
