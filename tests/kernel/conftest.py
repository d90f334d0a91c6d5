"""Every test here may build a kernel first; said on the terminal, since the first time takes minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kpoll.kernel.vm.machine import built
from tests.kernel.compiled import compiled
from tests.kernel.vm import TEST_KERNEL

if TYPE_CHECKING:
    from tests.kernel.compiled import Compiled


def _ready(kernel: str, config: pytest.Config) -> str:
    """Build a kernel unless it is cached; what the build says goes to the terminal past pytest's capture."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        built(kernel)
    return kernel


@pytest.fixture(scope="session")
def patched(pytestconfig: pytest.Config) -> str:
    """Name the kernel with the patch series: `patched`, or the debug kernel that KPOLL_TEST_KERNEL asks for."""
    return _ready(TEST_KERNEL, pytestconfig)


@pytest.fixture(scope="session")
def stock(pytestconfig: pytest.Config) -> str:
    """Name Debian's own kernel, for the module."""
    return _ready("stock", pytestconfig)


@pytest.fixture(scope="session")
def patched_module(patched: str, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Compile the module for the patched (or debug) kernel."""
    return compiled(patched, tmp_path_factory.mktemp("module"))


@pytest.fixture(scope="session")
def stock_module(stock: str, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Compile the module for Debian's own kernel."""
    return compiled(stock, tmp_path_factory.mktemp("module"))
