"""Identify and SMART pages: read as nvme-cli reads them, and whatever bytes a device puts there.

nvme_pages/ has what QEMU's devices said, without the zeros at the end, and what nvme-cli 2.3 made of it.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kpoll.nvme.pages import IDENTIFY_SIZE, SMART_SIZE, IdentifyController, IdentifyNamespace, LbaFormat, SmartLog, text
from tests.nvme_cli import as_nvme_cli

PAGES = Path(__file__).with_name("nvme_pages")
CASES = [
    ("id-ctrl", IdentifyController),
    ("id-ns-512", IdentifyNamespace),
    ("id-ns-4096", IdentifyNamespace),
    ("smart-log", SmartLog),
]


def page(name: str, size: int = IDENTIFY_SIZE) -> bytes:
    return (PAGES / f"{name}.bin").read_bytes().ljust(size, b"\0")


def namespace(**at: int) -> IdentifyNamespace:
    """Return a namespace whose page has these bytes: b25=7 is NLBAF 7."""
    raw = bytearray(page("id-ns-512"))
    for name, value in at.items():
        raw[int(name[1:])] = value
    return IdentifyNamespace.parse(bytes(raw))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_field_of_a_real_page_is_read_as_nvme_cli_reads_it(name: str, kind: type[Any]) -> None:
    theirs = json.loads((PAGES / f"{name}.json").read_text())
    ours = as_nvme_cli(asdict(kind.parse(page(name, kind.SIZE))))
    assert ours == {field: theirs[field] for field in ours}


# Each of these fields is 0 on QEMU's devices; where they are is figure 97's (namespace) and 275's (controller) word.
@pytest.mark.parametrize(
    ("field", "offset", "size"),
    [
        *[("nawun", 34, 2), ("nawupf", 36, 2), ("nacwu", 38, 2), ("nabsn", 40, 2), ("nabo", 42, 2), ("nabspf", 44, 2)],
        *[("noiob", 46, 2), ("nvmcap", 48, 16), ("npwg", 64, 2), ("npwa", 66, 2), ("npdg", 68, 2), ("npda", 70, 2)],
        *[("nows", 72, 2), ("mssrl", 74, 2), ("mcl", 76, 4), ("msrc", 80, 1), ("anagrpid", 92, 4), ("nsattr", 99, 1)],
    ],
)
def test_a_field_is_read_whole_from_where_the_specification_has_it(field: str, offset: int, size: int) -> None:
    raw = bytearray(IDENTIFY_SIZE)
    raw[offset : offset + size] = bytes(range(1, size + 1))
    found = asdict(IdentifyNamespace.parse(bytes(raw)))
    assert found.pop(field) == int.from_bytes(bytes(range(1, size + 1)), "little")
    quiet = asdict(IdentifyNamespace.parse(bytes(IDENTIFY_SIZE)))
    del quiet[field]
    assert found == quiet


@pytest.mark.parametrize(("kind", "size"), [(IdentifyController, 4096), (IdentifyNamespace, 4096), (SmartLog, 512)])
def test_a_page_of_another_length_is_none(kind: type[Any], size: int) -> None:
    for wrong in (0, size - 1, size + 1):
        with pytest.raises(ValueError, match=f"takes {size} bytes, not {wrong}"):
            kind.parse(bytes(wrong))


def test_a_namespace_has_the_formats_that_it_says_and_uses_one_of_them() -> None:
    found = namespace(b25=1, b26=1)
    assert len(found.lbafs) == 2
    assert found.lbaf == LbaFormat(ms=8, ds=9, rp=0)
    assert found.lbaf.block_bytes == 512


def test_a_format_that_does_not_exist_is_not_known() -> None:
    assert namespace(b25=1, b26=2).lbaf is None


def test_more_formats_than_the_page_has_room_for_are_not_there() -> None:
    assert len(namespace(b25=255, b82=255).lbafs) == 64


def test_the_upper_bits_of_flbas_count_only_where_the_lower_do_not_suffice() -> None:
    assert namespace(b25=15, b26=0x21).lbaf_index == 1
    assert namespace(b25=16, b26=0x21).lbaf_index == 17


@pytest.mark.parametrize(("lbads", "block"), [(0, None), (8, None), (9, 512), (12, 4096), (32, None), (255, None)])
def test_a_block_is_no_less_than_512_bytes_and_no_more_than_a_host_could_take(lbads: int, block: int | None) -> None:
    found = namespace(b130=lbads).lbaf
    assert found is not None
    assert found.block_bytes == block


def test_what_is_freed_at_once_is_told_where_that_field_means_anything() -> None:
    assert namespace().discard_granularity == 4096  # NPDG 7, blocks of 512 bytes
    assert namespace(b24=0).discard_granularity is None
    assert namespace(b130=0).discard_granularity is None
    assert namespace(b25=0, b26=3).discard_granularity is None


def test_bits_are_told_in_words() -> None:
    controller = IdentifyController.parse(page("id-ctrl"))
    assert controller.version == "1.4.0"
    assert controller.volatile_write_cache
    assert controller.optional_commands == (
        "Compare",
        "Dataset Management",
        "Write Zeroes",
        "Save/Select",
        "Timestamp",
        "Copy",
    )
    raw = bytearray(SMART_SIZE)
    raw[0] = 0b11001001
    found = SmartLog.parse(bytes(raw)).warnings
    assert found == ("spare capacity is low", "read only")


def test_a_text_has_nothing_that_a_terminal_obeys() -> None:
    assert text(b" \x1b[2J serial\r\xff\x9b \0 rest") == "?[2J serial???"


@pytest.mark.parametrize("seed", range(20))
def test_no_bytes_are_too_strange(seed: int) -> None:
    raw = random.Random(seed).randbytes(IDENTIFY_SIZE)
    namespace = IdentifyNamespace.parse(raw)
    assert len(namespace.lbafs) <= 64
    assert all(each.block_bytes is None or each.block_bytes >= 512 for each in namespace.lbafs)
    controller = IdentifyController.parse(raw)
    assert (controller.sn + controller.mn + controller.fr + controller.subnqn).isprintable()
    assert len(SmartLog.parse(raw[:SMART_SIZE]).warnings) <= 6
