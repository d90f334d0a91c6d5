"""The interface that the daemon and the module are built with is, to the letter, the one that the patches bring."""

from pathlib import Path

KERNEL = Path(__file__).resolve().parents[2] / "kernel"


def test_the_patches_bring_the_header_that_the_daemon_is_built_with() -> None:
    patch = next((KERNEL / "patches").glob("0001-*.patch")).read_text()
    added = patch.split("+++ b/include/uapi/linux/eventfd_poll.h\n")[1].split("\ndiff --git")[0].split("\n", 1)[1]
    lines = [line.removeprefix("+") for line in added.splitlines()]
    assert "\n".join(lines) + "\n" == (KERNEL / "uapi" / "eventfd_poll.h").read_text()
