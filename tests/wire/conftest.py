"""Fixtures of the wire tests."""

from __future__ import annotations

import pytest

from tests.wire.harness import Backend, RecordingDevice


@pytest.fixture
def device() -> RecordingDevice:
    """Give a device that writes down what it is told."""
    return RecordingDevice()


@pytest.fixture
def backend(device: RecordingDevice) -> Backend:
    """Give a back-end that serves the recording device."""
    return Backend(device)
