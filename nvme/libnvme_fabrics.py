"""The part of the distribution's libnvme that connects, disconnects and reads discovery logs (libnvme 1.3 and later).

Its functions fail with -1 and errno: the kernel's, or one of its own from 1000 on (nvme/util.h).
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from cffi import FFI

from .libnvme import NO_LOG, each_of, string
from .libnvme import ffi as libnvme_ffi
from .pages import text

if TYPE_CHECKING:
    from .fabrics import Address, HostName, Queues, Timeouts
    from .libnvme import Libnvme

ENVME_CONNECT_OPEN: Final = 1005
ENVME_CONNECT_ALREADY: Final = 1012
ENVME_CONNECT_INVAL: Final = 1013
ENVME_CONNECT_CONNREFUSED: Final = 1017

_ENVME: Final = range(1000, 1100)
_RECORDS_MAX: Final = 4096  # of a discovery log, whose length the target says
_LOG_RETRIES: Final = 4  # it may change while it is read

ffi: Final = FFI()
ffi.include(libnvme_ffi)
ffi.cdef("""
    /* The beginning, the same in all releases; what follows (digests, keys, TLS) differs, and stays at its default. */
    struct nvme_fabrics_config {
        char *host_traddr, *host_iface;
        int queue_size, nr_io_queues, reconnect_delay, ctrl_loss_tmo, fast_io_fail_tmo, keep_alive_tmo;
        int nr_write_queues, nr_poll_queues, tos;
        uint8_t later_releases[512];
    };

    struct nvmf_disc_log_entry {
        uint8_t trtype, adrfam, subtype, treq;
        uint16_t portid, cntlid, asqsz, eflags;
        uint8_t rsvd12[20];
        char trsvcid[32];
        uint8_t rsvd64[192];
        char subnqn[256], traddr[256];
        uint8_t tsas[256];
    };
    struct nvmf_discovery_log {
        uint64_t genctr, numrec;
        uint16_t recfmt;
        uint8_t rsvd14[1006];
        struct nvmf_disc_log_entry entries[];
    };

    nvme_root_t nvme_create_root(void *fp, int log_level);
    int nvme_scan_topology(nvme_root_t r, void *filter, void *filter_args);
    void nvme_free_tree(nvme_root_t r);
    nvme_host_t nvme_lookup_host(nvme_root_t r, const char *hostnqn, const char *hostid);
    nvme_host_t nvme_first_host(nvme_root_t r);
    nvme_host_t nvme_next_host(nvme_root_t r, nvme_host_t h);
    nvme_subsystem_t nvme_first_subsystem(nvme_host_t h);
    nvme_subsystem_t nvme_next_subsystem(nvme_host_t h, nvme_subsystem_t s);
    nvme_ctrl_t nvme_subsystem_first_ctrl(nvme_subsystem_t s);
    nvme_ctrl_t nvme_subsystem_next_ctrl(nvme_subsystem_t s, nvme_ctrl_t c);
    nvme_ctrl_t nvme_create_ctrl(nvme_root_t r, const char *subsysnqn, const char *transport, const char *traddr,
                                 const char *host_traddr, const char *host_iface, const char *trsvcid);
    const char *nvme_ctrl_get_name(nvme_ctrl_t c);
    void nvme_free_ctrl(nvme_ctrl_t c);
    int nvme_disconnect_ctrl(nvme_ctrl_t c);
    void nvmf_default_config(struct nvme_fabrics_config *cfg);
    int nvmf_add_ctrl(nvme_host_t h, nvme_ctrl_t c, const struct nvme_fabrics_config *cfg);
    int nvmf_get_discovery_log(nvme_ctrl_t c, struct nvmf_discovery_log **logp, int max_retries);
    const char *nvmf_trtype_str(uint8_t trtype);
    const char *nvmf_adrfam_str(uint8_t adrfam);
    const char *nvmf_subtype_str(uint8_t subtype);
    const char *nvme_errno_to_string(int err);
    void free(void *);
""")


class FabricsError(Exception):
    """The library, or the kernel, couldn't; the message is its word for why.

    Attributes:
        code: An errno, or one of the library's own (ENVME_*).

    """

    def __init__(self, code: int, message: str) -> None:
        """Say why."""
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        """Return the message alone."""
        return self.message


def _word(value: str | None) -> Any:
    return ffi.NULL if value is None else value.encode()


class Fabrics:
    """The loaded library, seen from this side. Each call blocks for as long as the kernel does."""

    def __init__(self, library: Libnvme) -> None:
        """Use the library that `library` has loaded."""
        self._lib: Any = ffi.dlopen(library.name)
        self._libc: Any = ffi.dlopen(None)

    def connect(self, address: Address, nqn: str, host: HostName, timeouts: Timeouts, queues: Queues) -> str:
        """Make a controller; return its name. Raises FabricsError."""
        root = self._root()
        try:
            return string(self._lib.nvme_ctrl_get_name(self._add(root, address, nqn, host, timeouts, queues)))
        finally:
            self._lib.nvme_free_tree(root)

    def discover(self, address: Address, nqn: str, host: HostName) -> list[dict[str, Any]]:
        """Read a discovery log by a controller of its own; return its records, as `Offer` has them.

        Raises FabricsError.
        """
        from .fabrics import Queues, Timeouts  # noqa: PLC0415 - which imports this file

        lib, log = self._lib, ffi.new("struct nvmf_discovery_log **")
        root = self._root()
        try:
            ctrl = self._add(root, address, nqn, host, Timeouts(), Queues())
            try:
                self._check(lib.nvmf_get_discovery_log(ctrl, log, _LOG_RETRIES))
                count = min(int(log[0].numrec), _RECORDS_MAX)
                return [self._offer(log[0].entries[i]) for i in range(count)]
            finally:
                lib.nvme_disconnect_ctrl(ctrl)
                self._libc.free(log[0])
        finally:
            lib.nvme_free_tree(root)

    def disconnect(self, name: str) -> None:
        """Remove a controller by its name. Raises FabricsError."""
        lib = self._lib
        root = self._root()
        try:
            self._check(lib.nvme_scan_topology(root, ffi.NULL, ffi.NULL))
            for ctrl in self._ctrls(root):
                if string(lib.nvme_ctrl_get_name(ctrl)) == name:
                    self._check(lib.nvme_disconnect_ctrl(ctrl))
                    return
            raise FabricsError(0, "it isn't there any more")
        finally:
            lib.nvme_free_tree(root)

    def _root(self) -> Any:
        root = self._lib.nvme_create_root(ffi.NULL, NO_LOG)
        if not root:
            raise MemoryError
        return root

    def _ctrls(self, root: Any) -> Any:
        lib = self._lib
        for host in each_of(lib.nvme_first_host(root), partial(lib.nvme_next_host, root)):
            for subsystem in each_of(lib.nvme_first_subsystem(host), partial(lib.nvme_next_subsystem, host)):
                first = lib.nvme_subsystem_first_ctrl(subsystem)
                yield from each_of(first, partial(lib.nvme_subsystem_next_ctrl, subsystem))

    def _add(self, root: Any, address: Address, nqn: str, host: HostName, timeouts: Timeouts, queues: Queues) -> Any:
        lib = self._lib
        config: Any = ffi.new("struct nvme_fabrics_config *")
        lib.nvmf_default_config(config)
        for name in ("reconnect_delay", "ctrl_loss_tmo", "fast_io_fail_tmo", "keep_alive_tmo"):
            if (seconds := getattr(timeouts, name)) is not None:
                setattr(config, name, seconds)
        if queues.io is not None:
            config.nr_io_queues = queues.io
        if queues.poll is not None:
            config.nr_poll_queues = queues.poll
        port = None if address.trsvcid is None else str(address.trsvcid)
        words = (nqn, address.transport, address.traddr or None, address.host_traddr, address.host_iface, port)
        ctrl = lib.nvme_create_ctrl(root, *map(_word, words))
        if not ctrl:
            self._check(-1)
        try:
            self._check(lib.nvmf_add_ctrl(lib.nvme_lookup_host(root, _word(host.nqn), _word(host.id)), ctrl, config))
        except FabricsError:
            lib.nvme_free_ctrl(ctrl)
            raise
        return ctrl

    def _offer(self, entry: Any) -> dict[str, Any]:
        lib = self._lib
        return {
            "transport": string(lib.nvmf_trtype_str(entry.trtype)),
            "address_family": string(lib.nvmf_adrfam_str(entry.adrfam)),
            "traddr": _padded(entry.traddr),
            "trsvcid": _padded(entry.trsvcid),
            "nqn": _padded(entry.subnqn),
            "subtype": string(lib.nvmf_subtype_str(entry.subtype)),
            "port_id": int(entry.portid),
        }

    def _check(self, result: int) -> None:
        if result == 0:
            return
        code = int(ffi.errno)
        raise FabricsError(code, string(self._lib.nvme_errno_to_string(code)) if code in _ENVME else os.strerror(code))


def _padded(field: Any) -> str:
    """Return a field of fixed size, which spaces or zeros fill up."""
    return text(bytes(ffi.buffer(field)).split(b"\0")[0])
