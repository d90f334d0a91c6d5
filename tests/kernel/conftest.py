"""Every test here may build a kernel first; said on the terminal, since the first time takes minutes."""

from __future__ import annotations

import subprocess

import pytest

from tests.kernel.vm import BUILD, TEST_KERNEL


def _ready(kernel: str, config: pytest.Config) -> str:
    """Build a kernel unless it is cached; what the build says goes to the terminal past pytest's capture."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        subprocess.run([BUILD, kernel], stdout=subprocess.DEVNULL, check=True)
    return kernel


@pytest.fixture(scope="session")
def patched(pytestconfig: pytest.Config) -> str:
    """Name the kernel with the patch series: `patched`, or `debug` where KPOLL_TEST_KERNEL=debug asks for it."""
    return _ready(TEST_KERNEL, pytestconfig)


@pytest.fixture(scope="session")
def stock(pytestconfig: pytest.Config) -> str:
    """Name Debian's own kernel, for the module."""
    return _ready("stock", pytestconfig)
