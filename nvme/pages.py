"""What a device says of itself: Identify Controller, Identify Namespace, SMART / Health Information (NVMe base 2.0).

Fields are called as in the specification, in small letters, which is also what `nvme id-ns -o json` calls them. A page
is what a device wrote: any byte of it may be anything, so what is counted or shifted by is bounded here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

IDENTIFY_SIZE: Final = 4096
SMART_SIZE: Final = 512

_LBAF_AT: Final = 128
_LBAF: Final = struct.Struct("<HBB")
_LBAF_MAX: Final = 64
# FLBAS has two more bits of the format's index where there are more formats than its low four can tell.
_LBAF_SHORT: Final = 16
_LBADS: Final = range(9, 32)  # 512 bytes is the least that the specification allows, and no host takes 4 GiB


def text(raw: bytes) -> str:
    """Return an ASCII field without its padding; whatever a terminal might take for a command is a question mark."""
    kept = raw.partition(b"\0")[0].decode("ascii", errors="replace").strip()
    return "".join(char if " " <= char <= "~" else "?" for char in kept)


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def _at(offset: int, form: str, turn: Any = None) -> Any:
    """Say where in a page a field is.

    Args:
        offset: In bytes.
        form: As struct has it, little-endian.
        turn: What makes of that value the field's; None: it is the field's.

    """
    return field(metadata={"offset": offset, "struct": struct.Struct("<" + form), "turn": turn})


class _Page:
    """A page whose fields are told by `_at`."""

    SIZE = IDENTIFY_SIZE

    @classmethod
    def parse(cls, page: bytes) -> Self:
        """Read a page. Raises ValueError when it isn't as long as such a page is."""
        if len(page) != cls.SIZE:
            raise ValueError(f"{cls.__name__} takes {cls.SIZE} bytes, not {len(page)}")
        values = {}
        for each in fields(cls):  # type: ignore[arg-type]  # those that inherit are dataclasses
            values[each.name] = each.metadata["struct"].unpack_from(page, each.metadata["offset"])[0]
            if each.metadata["turn"] is not None:
                values[each.name] = each.metadata["turn"](values[each.name])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class IdentifyController(_Page):
    """Identify Controller, NVMe base 2.0 figure 275. Units are the specification's.

    `mdts` is a power of two of the controller's smallest memory page (4 KiB nearly always), 0 for no limit. `wctemp`
    and `cctemp` are Kelvin, `tnvmcap` and `unvmcap` bytes.
    """

    vid: int = _at(0, "H")
    ssvid: int = _at(2, "H")
    sn: str = _at(4, "20s", text)
    mn: str = _at(24, "40s", text)
    fr: str = _at(64, "8s", text)
    ieee: int = _at(73, "3s", _number)
    cmic: int = _at(76, "B")
    mdts: int = _at(77, "B")
    cntlid: int = _at(78, "H")
    ver: int = _at(80, "I")
    oaes: int = _at(92, "I")
    ctratt: int = _at(96, "I")
    cntrltype: int = _at(111, "B")
    oacs: int = _at(256, "H")
    lpa: int = _at(261, "B")
    elpe: int = _at(262, "B")
    npss: int = _at(263, "B")
    wctemp: int = _at(266, "H")
    cctemp: int = _at(268, "H")
    tnvmcap: int = _at(280, "16s", _number)
    unvmcap: int = _at(296, "16s", _number)
    kas: int = _at(320, "H")
    sanicap: int = _at(328, "I")
    anatt: int = _at(342, "B")
    anacap: int = _at(343, "B")
    anagrpmax: int = _at(344, "I")
    nanagrpid: int = _at(348, "I")
    sqes: int = _at(512, "B")
    cqes: int = _at(513, "B")
    maxcmd: int = _at(514, "H")
    nn: int = _at(516, "I")
    oncs: int = _at(520, "H")
    fuses: int = _at(522, "H")
    fna: int = _at(524, "B")
    vwc: int = _at(525, "B")
    awun: int = _at(526, "H")
    awupf: int = _at(528, "H")
    nwpc: int = _at(531, "B")
    acwu: int = _at(532, "H")
    sgls: int = _at(536, "I")
    mnan: int = _at(540, "I")
    subnqn: str = _at(768, "256s", text)

    @property
    def version(self) -> str:
        """The specification that it keeps to, such as 1.4.0."""
        return f"{self.ver >> 16}.{self.ver >> 8 & 0xFF}.{self.ver & 0xFF}"

    @property
    def optional_commands(self) -> tuple[str, ...]:
        """Names of the optional commands in ONCS."""
        return tuple(name for bit, name in enumerate(_ONCS) if self.oncs & 1 << bit)

    @property
    def volatile_write_cache(self) -> bool:
        """Whether a write may be lost unless it is flushed (VWC bit 0)."""
        return bool(self.vwc & 1)


_ONCS: Final = (
    "Compare",
    "Write Uncorrectable",
    "Dataset Management",
    "Write Zeroes",
    "Save/Select",
    "Reservations",
    "Timestamp",
    "Verify",
    "Copy",
)


@dataclass(frozen=True)
class LbaFormat:
    """An LBA format: blocks of 1 << `ds` bytes with `ms` bytes of metadata, of relative performance `rp` (0: best)."""

    ms: int
    ds: int
    rp: int

    @property
    def block_bytes(self) -> int | None:
        """Bytes of a block; None for a format that can't be: LBADS 0 is one that the controller doesn't have."""
        return 1 << self.ds if self.ds in _LBADS else None


@dataclass(frozen=True, kw_only=True)
class IdentifyNamespace(_Page):
    """Identify Namespace, NVM command set 1.0 figure 97. Units are the specification's.

    Sizes (`nsze`, `ncap`, `nuse`) and granularities are in blocks, and the latter 0-based: npwg 7 is 8 blocks.
    `nvmcap` is in bytes.
    """

    nsze: int = _at(0, "Q")
    ncap: int = _at(8, "Q")
    nuse: int = _at(16, "Q")
    nsfeat: int = _at(24, "B")
    nlbaf: int = _at(25, "B")
    flbas: int = _at(26, "B")
    mc: int = _at(27, "B")
    dpc: int = _at(28, "B")
    dps: int = _at(29, "B")
    nmic: int = _at(30, "B")
    rescap: int = _at(31, "B")
    fpi: int = _at(32, "B")
    dlfeat: int = _at(33, "B")
    nawun: int = _at(34, "H")
    nawupf: int = _at(36, "H")
    nacwu: int = _at(38, "H")
    nabsn: int = _at(40, "H")
    nabo: int = _at(42, "H")
    nabspf: int = _at(44, "H")
    noiob: int = _at(46, "H")
    nvmcap: int = _at(48, "16s", _number)
    npwg: int = _at(64, "H")
    npwa: int = _at(66, "H")
    npdg: int = _at(68, "H")
    npda: int = _at(70, "H")
    nows: int = _at(72, "H")
    mssrl: int = _at(74, "H")
    mcl: int = _at(76, "I")
    msrc: int = _at(80, "B")
    nulbaf: int = _at(82, "B")
    anagrpid: int = _at(92, "I")
    nsattr: int = _at(99, "B")
    nvmsetid: int = _at(100, "H")
    endgid: int = _at(102, "H")
    nguid: str = _at(104, "16s", bytes.hex)
    eui64: str = _at(120, "8s", bytes.hex)
    lbafs: tuple[LbaFormat, ...] = _at(
        _LBAF_AT, f"{_LBAF_MAX * _LBAF.size}s", lambda raw: tuple(LbaFormat(*each) for each in _LBAF.iter_unpack(raw))
    )

    def __post_init__(self) -> None:
        """Keep the formats that there are (NLBAF is 0-based), at most as many as the page has room for."""
        object.__setattr__(self, "lbafs", self.lbafs[: self.nlbaf + 1 + self.nulbaf])

    @property
    def lbaf_index(self) -> int:
        """Which of `lbafs` it is formatted with; FLBAS may say more than there are."""
        low = self.flbas & 0xF
        return low | (self.flbas >> 5 & 3) << 4 if len(self.lbafs) > _LBAF_SHORT else low

    @property
    def lbaf(self) -> LbaFormat | None:
        """The format in use; None when there is none of that number."""
        return self.lbafs[self.lbaf_index] if self.lbaf_index < len(self.lbafs) else None

    @property
    def write_protected(self) -> bool:
        """Whether it takes no writes for now (NSATTR bit 0)."""
        return bool(self.nsattr & 1)

    @property
    def discard_granularity(self) -> int | None:
        """What it frees at once, in bytes (NPDG); None: not told."""
        block = self.lbaf.block_bytes if self.lbaf else None
        return (self.npdg + 1) * block if block and self.has_optimal_sizes else None

    @property
    def has_optimal_sizes(self) -> bool:
        """Whether NPWG, NPWA, NPDG, NPDA and NOWS mean anything (NSFEAT bit 4)."""
        return bool(self.nsfeat & 1 << 4)


@dataclass(frozen=True, kw_only=True)
class SmartLog(_Page):
    """SMART / Health Information, NVMe base 2.0 figure 207. Units are the specification's.

    `temperature` is Kelvin; a data unit is 1000 blocks of 512 bytes; `controller_busy_time`, `warning_temp_time` and
    `critical_comp_time` are minutes; `percent_used` may exceed 100, as a device may outlive its estimate.
    """

    SIZE = SMART_SIZE

    critical_warning: int = _at(0, "B")
    temperature: int = _at(1, "H")
    avail_spare: int = _at(3, "B")
    spare_thresh: int = _at(4, "B")
    percent_used: int = _at(5, "B")
    endurance_grp_critical_warning_summary: int = _at(6, "B")
    data_units_read: int = _at(32, "16s", _number)
    data_units_written: int = _at(48, "16s", _number)
    host_read_commands: int = _at(64, "16s", _number)
    host_write_commands: int = _at(80, "16s", _number)
    controller_busy_time: int = _at(96, "16s", _number)
    power_cycles: int = _at(112, "16s", _number)
    power_on_hours: int = _at(128, "16s", _number)
    unsafe_shutdowns: int = _at(144, "16s", _number)
    media_errors: int = _at(160, "16s", _number)
    num_err_log_entries: int = _at(176, "16s", _number)
    warning_temp_time: int = _at(192, "I")
    critical_comp_time: int = _at(196, "I")
    thm_temp1_trans_count: int = _at(216, "I")
    thm_temp2_trans_count: int = _at(220, "I")
    thm_temp1_total_time: int = _at(224, "I")
    thm_temp2_total_time: int = _at(228, "I")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What `critical_warning` warns of, in words."""
        return tuple(what for bit, what in enumerate(_WARNINGS) if self.critical_warning & 1 << bit)


_WARNINGS: Final = (
    "spare capacity is low",
    "temperature is out of range",
    "reliability is degraded",
    "read only",
    "the cache's backup power has failed",
    "the persistent memory region is unreliable",
)
