"""What --nvme-tcp says: a namespace of an NVMe subsystem that is reached over TCP."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from kpoll.nvme.nqn import DISCOVERY_NQN, nqn_problem

from .errors import UsageError

PORT: Final = 4420  # IANA's for NVMe over Fabrics
_FORM: Final = "addr=IP[:PORT],nqn=NQN[,nsid=N][,poll-queues=N]"
_NSID_MAX: Final = 0xFFFFFFFE  # the one above means all of them
_PORT_MAX: Final = 65535
_POLL_QUEUES_MAX: Final = 1024  # of which the kernel takes as many as there are CPUs


@dataclass(frozen=True, kw_only=True)
class NvmeTcp:
    """A namespace, and where it is.

    Attributes:
        traddr: The target's IP address.
        port: Its TCP port.
        nqn: The subsystem.
        nsid: The namespace's number in it; None: the only one that it has.
        poll_queues: How many queues to ask for whose completions are polled for; None: none.

    """

    traddr: str
    port: int
    nqn: str
    nsid: int | None
    poll_queues: int | None = None

    def __str__(self) -> str:
        """Name it as logs and metrics do."""
        return self.nqn if self.nsid is None else f"{self.nqn}:{self.nsid}"


def parse_nvme_tcp(text: str) -> NvmeTcp:
    """Parse --nvme-tcp, see _FORM; an IPv6 address with a port stands in brackets.

    Raises UsageError.
    """
    values: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in {"addr", "nqn", "nsid", "poll-queues"}:
            raise UsageError(f"--nvme-tcp {text}: {part or 'nothing'} is none of its parts; give {_FORM}")
        if key in values:
            raise UsageError(f"--nvme-tcp {text}: {key}= was given twice; give it once")
        values[key] = value
    for key in ("addr", "nqn"):
        if key not in values:
            raise UsageError(f"--nvme-tcp {text}: has no {key}=; give {_FORM}")
    traddr, port = _address(text, values["addr"])
    if problem := nqn_problem(values["nqn"]):
        raise UsageError(f"--nvme-tcp {text}: nqn={values['nqn']} is no NQN: {problem}")
    if values["nqn"] == DISCOVERY_NQN:
        raise UsageError(f"--nvme-tcp {text}: that subsystem has no disks; `kpoll nvme discover` shows which have")
    return NvmeTcp(
        traddr=traddr,
        port=port,
        nqn=values["nqn"],
        nsid=_number(text, "nsid", values.get("nsid"), _NSID_MAX, "a namespace's number, 1 or more"),
        poll_queues=_number(
            text, "poll-queues", values.get("poll-queues"), _POLL_QUEUES_MAX, f"a number from 1 to {_POLL_QUEUES_MAX}"
        ),
    )


def _address(text: str, value: str) -> tuple[str, int]:
    match = re.fullmatch(r"\[([^\[\]]+)\](?::([0-9]{1,5}))?|([0-9.]+)(?::([0-9]{1,5}))?|([^\[\]]+)", value)
    host, port = (None, None) if match is None else (match[1] or match[3] or match[5], match[2] or match[4])
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError as error:
        raise UsageError(
            f"--nvme-tcp {text}: addr={value} is no IP address; give one, such as 192.0.2.1:4420 or [2001:db8::1]:4420"
        ) from error
    number = PORT if port is None else int(port)
    if not 0 < number <= _PORT_MAX:
        raise UsageError(f"--nvme-tcp {text}: addr={value}: give a port from 1 to {_PORT_MAX}")
    return str(address), number


def _number(text: str, key: str, value: str | None, most: int, wants: str) -> int | None:
    """Parse what one part says, from 1 to `most`; None: it is not there. Raises UsageError: what it `wants`."""
    if value is None:
        return None
    if re.fullmatch(rf"[0-9]{{1,{len(str(most))}}}", value) is None or not 0 < int(value) <= most:
        raise UsageError(f"--nvme-tcp {text}: {key}={value}: give {wants}")
    return int(value)
