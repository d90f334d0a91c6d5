"""The distribution's libnvme, as far as we use it (libnvme 1.3, of Debian 12, and later ones of the same ABI).

Loaded when it is wanted, so that kpoll is built and runs without. It returns 0; the device's status, above 0; or -1 and
errno. Its strings are the kernel's and so the device's: bounded and made fit to be shown before they leave here.
"""

from __future__ import annotations

import errno
import os
import struct
import uuid
from typing import TYPE_CHECKING, Any, Final

from cffi import FFI

from .pages import IDENTIFY_SIZE, SMART_SIZE, text
from .topology import Controller, Host, Namespace, Path, Subsystem, Topology, by_name, by_nqn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SONAME: Final = "libnvme.so.1"
PACKAGE: Final = "libnvme1"  # Debian's

_NSID_ALL: Final = 0xFFFFFFFF
_CNS_NAMESPACE: Final = 0
_CNS_CONTROLLER: Final = 1
_CNS_ACTIVE_NAMESPACES: Final = 2
_LID_SMART: Final = 2
_TIMEOUT_MS: Final = 5000  # a healthy device answers an admin command within milliseconds
NO_LOG: Final = -1  # below every syslog level: what goes wrong is said by us
_STRING_MAX: Final = 4096
_NGUID: Final = 16
_EUI64: Final = 8

ffi: Final = FFI()
ffi.cdef("""
    typedef struct nvme_root *nvme_root_t;
    typedef struct nvme_host *nvme_host_t;
    typedef struct nvme_subsystem *nvme_subsystem_t;
    typedef struct nvme_ctrl *nvme_ctrl_t;
    typedef struct nvme_ns *nvme_ns_t;
    typedef struct nvme_path *nvme_path_t;

    nvme_root_t nvme_create_root(void *fp, int log_level);
    int nvme_scan_topology(nvme_root_t r, void *filter, void *filter_args);
    void nvme_free_tree(nvme_root_t r);

    nvme_host_t nvme_first_host(nvme_root_t r);
    nvme_host_t nvme_next_host(nvme_root_t r, nvme_host_t h);
    const char *nvme_host_get_hostnqn(nvme_host_t h);
    const char *nvme_host_get_hostid(nvme_host_t h);

    nvme_subsystem_t nvme_first_subsystem(nvme_host_t h);
    nvme_subsystem_t nvme_next_subsystem(nvme_host_t h, nvme_subsystem_t s);
    const char *nvme_subsystem_get_name(nvme_subsystem_t s);
    const char *nvme_subsystem_get_nqn(nvme_subsystem_t s);
    nvme_ns_t nvme_subsystem_first_ns(nvme_subsystem_t s);
    nvme_ns_t nvme_subsystem_next_ns(nvme_subsystem_t s, nvme_ns_t n);

    nvme_ctrl_t nvme_subsystem_first_ctrl(nvme_subsystem_t s);
    nvme_ctrl_t nvme_subsystem_next_ctrl(nvme_subsystem_t s, nvme_ctrl_t c);
    const char *nvme_ctrl_get_name(nvme_ctrl_t c);
    const char *nvme_ctrl_get_transport(nvme_ctrl_t c);
    const char *nvme_ctrl_get_address(nvme_ctrl_t c);
    const char *nvme_ctrl_get_state(nvme_ctrl_t c);
    const char *nvme_ctrl_get_serial(nvme_ctrl_t c);
    const char *nvme_ctrl_get_model(nvme_ctrl_t c);
    const char *nvme_ctrl_get_firmware(nvme_ctrl_t c);
    const char *nvme_ctrl_get_queue_count(nvme_ctrl_t c);
    nvme_ns_t nvme_ctrl_first_ns(nvme_ctrl_t c);
    nvme_ns_t nvme_ctrl_next_ns(nvme_ctrl_t c, nvme_ns_t n);

    const char *nvme_ns_get_name(nvme_ns_t n);
    int nvme_ns_get_nsid(nvme_ns_t n);
    int nvme_ns_get_lba_size(nvme_ns_t n);
    int nvme_ns_get_meta_size(nvme_ns_t n);
    uint64_t nvme_ns_get_lba_count(nvme_ns_t n);
    const uint8_t *nvme_ns_get_eui64(nvme_ns_t n);
    const uint8_t *nvme_ns_get_nguid(nvme_ns_t n);
    void nvme_ns_get_uuid(nvme_ns_t n, unsigned char out[16]);

    nvme_path_t nvme_namespace_first_path(nvme_ns_t n);
    nvme_path_t nvme_namespace_next_path(nvme_ns_t n, nvme_path_t p);
    const char *nvme_path_get_name(nvme_path_t p);
    const char *nvme_path_get_ana_state(nvme_path_t p);
    nvme_ctrl_t nvme_path_get_ctrl(nvme_path_t p);

    const char *nvme_status_to_string(int status, bool fabrics);
    int nvme_get_nsid(int fd, uint32_t *nsid);

    struct nvme_identify_args {
        uint32_t *result;
        void *data;
        int args_size, fd;
        uint32_t timeout;
        int cns, csi;
        uint32_t nsid;
        uint16_t cntid, cns_specific_id;
        uint8_t uuidx;
    };
    int nvme_identify(struct nvme_identify_args *args);

    struct nvme_get_log_args {
        uint64_t lpo;
        uint32_t *result;
        void *log;
        int args_size, fd;
        uint32_t timeout;
        int lid;
        uint32_t len, nsid;
        int csi;
        uint16_t lsi;
        uint8_t lsp, uuidx;
        bool rae, ot;
    };
    int nvme_get_log(struct nvme_get_log_args *args);
""")


class StatusError(Exception):
    """The device answered a command with another status than success; the message is the library's word for it."""


def load(name: str = SONAME) -> Libnvme | None:
    """Load the library; None where it isn't installed."""
    try:
        return Libnvme(ffi.dlopen(name), name)
    except OSError:
        return None


def each_of(first: Any, following: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield the members of one of the library's lists."""
    while first:
        yield first
        first = following(first)


def string(value: Any) -> str:
    """Return a string of the library's, which may be NULL."""
    raw: Any = ffi.string(value, _STRING_MAX) if value else b""
    return text(raw)


def _hex(value: Any, size: int) -> str | None:
    """Return an identifier, of which zeros mean that there is none."""
    raw = bytes(ffi.buffer(value, size)) if value else b""
    return raw.hex() if any(raw) else None


class Libnvme:
    """The loaded library.

    Attributes:
        name: What it was loaded as.

    """

    def __init__(self, lib: Any, name: str = SONAME) -> None:
        """Wrap what dlopen() gave."""
        self._lib = lib
        self.name = name

    def scan(self) -> Topology:
        """Look at what there is. A namespace that this user may not open is left out, as the library does it.

        Raises OSError when the library can't look.
        """
        root = self._lib.nvme_create_root(ffi.NULL, NO_LOG)
        if not root:
            raise MemoryError
        try:
            # ENOENT: the kernel has no NVMe driver loaded.
            if self._lib.nvme_scan_topology(root, ffi.NULL, ffi.NULL) < 0 and ffi.errno != errno.ENOENT:
                raise OSError(ffi.errno, os.strerror(ffi.errno))
            lib = self._lib
            hosts = [
                self._host(each) for each in each_of(lib.nvme_first_host(root), lambda h: lib.nvme_next_host(root, h))
            ]
            return Topology(source="libnvme", why_not_libnvme=None, hosts=by_nqn(hosts))
        finally:
            self._lib.nvme_free_tree(root)

    def _host(self, host: Any) -> Host:
        lib = self._lib
        subsystems = each_of(lib.nvme_first_subsystem(host), lambda s: lib.nvme_next_subsystem(host, s))
        return Host(
            nqn=string(lib.nvme_host_get_hostnqn(host)) or None,
            id=string(lib.nvme_host_get_hostid(host)) or None,
            subsystems=by_name(self._subsystem(each) for each in subsystems),
        )

    def _subsystem(self, subsystem: Any) -> Subsystem:
        lib = self._lib
        shared = each_of(lib.nvme_subsystem_first_ns(subsystem), lambda n: lib.nvme_subsystem_next_ns(subsystem, n))
        namespaces = [self._namespace(each, self._paths(each)) for each in shared]
        controllers = []
        for each in each_of(
            lib.nvme_subsystem_first_ctrl(subsystem), lambda c: lib.nvme_subsystem_next_ctrl(subsystem, c)
        ):
            controller = self._controller(each)
            controllers.append(controller)
            namespaces += self._private(each, controller.name)
        return Subsystem(
            name=string(lib.nvme_subsystem_get_name(subsystem)),
            nqn=string(lib.nvme_subsystem_get_nqn(subsystem)),
            controllers=by_name(controllers),
            namespaces=by_name(namespaces),
        )

    def _private(self, ctrl: Any, controller: str) -> Iterator[Namespace]:
        """Yield the namespaces that only this controller can have."""
        lib = self._lib
        for each in each_of(lib.nvme_ctrl_first_ns(ctrl), lambda n: lib.nvme_ctrl_next_ns(ctrl, n)):
            name = string(lib.nvme_ns_get_name(each))
            yield self._namespace(each, (Path(name=name, controller=controller, ana_state=None),))

    def _controller(self, ctrl: Any) -> Controller:
        lib = self._lib
        queues = string(lib.nvme_ctrl_get_queue_count(ctrl))
        return Controller(
            name=string(lib.nvme_ctrl_get_name(ctrl)),
            transport=string(lib.nvme_ctrl_get_transport(ctrl)),
            address=string(lib.nvme_ctrl_get_address(ctrl)),
            state=string(lib.nvme_ctrl_get_state(ctrl)),
            serial=string(lib.nvme_ctrl_get_serial(ctrl)),
            model=string(lib.nvme_ctrl_get_model(ctrl)),
            firmware=string(lib.nvme_ctrl_get_firmware(ctrl)),
            queues=int(queues) if queues.isdecimal() else None,
        )

    def _namespace(self, ns: Any, paths: tuple[Path, ...]) -> Namespace:
        lib = self._lib
        raw = ffi.new("unsigned char[16]")
        lib.nvme_ns_get_uuid(ns, raw)
        block = int(lib.nvme_ns_get_lba_size(ns))
        return Namespace(
            name=string(lib.nvme_ns_get_name(ns)),
            nsid=int(lib.nvme_ns_get_nsid(ns)),
            size_bytes=int(lib.nvme_ns_get_lba_count(ns)) * block,
            block_bytes=block,
            metadata_bytes=int(lib.nvme_ns_get_meta_size(ns)),
            nguid=_hex(lib.nvme_ns_get_nguid(ns), _NGUID),
            eui64=_hex(lib.nvme_ns_get_eui64(ns), _EUI64),
            uuid=str(uuid.UUID(bytes=bytes(raw))) if any(bytes(raw)) else None,
            paths=paths,
        )

    def _paths(self, ns: Any) -> tuple[Path, ...]:
        lib = self._lib
        return by_name(
            Path(
                name=string(lib.nvme_path_get_name(each)),
                controller=string(lib.nvme_ctrl_get_name(lib.nvme_path_get_ctrl(each))),
                ana_state=string(lib.nvme_path_get_ana_state(each)) or None,
            )
            for each in each_of(lib.nvme_namespace_first_path(ns), lambda p: lib.nvme_namespace_next_path(ns, p))
        )

    def identify_controller(self, fd: int) -> bytes:
        """Return Identify Controller of a controller, or of the one behind a namespace.

        Raises StatusError when the device refuses, OSError when the kernel does.
        """
        return self._identify(fd, _CNS_CONTROLLER, 0)

    def identify_namespace(self, fd: int) -> bytes:
        """Return Identify Namespace of a namespace's device. Raises as identify_controller() does."""
        nsid = ffi.new("uint32_t *")
        self._check(self._lib.nvme_get_nsid(fd, nsid))
        return self._identify(fd, _CNS_NAMESPACE, nsid[0])

    def active_namespaces(self, fd: int) -> list[int]:
        """Return the NSIDs that a controller has, ascending, at most 1024. Raises as identify_controller() does."""
        page = self._identify(fd, _CNS_ACTIVE_NAMESPACES, 0)
        return [nsid for (nsid,) in struct.iter_unpack("<I", page) if nsid]

    def smart_log(self, fd: int) -> bytes:
        """Return the controller's SMART / Health Information. Raises as identify_controller() does."""
        log = ffi.new("uint8_t[]", SMART_SIZE)
        what = {"log": log, "len": SMART_SIZE, "lid": _LID_SMART, "nsid": _NSID_ALL}
        args = self._arguments("struct nvme_get_log_args", fd, what)
        self._check(self._lib.nvme_get_log(args))
        return bytes(ffi.buffer(log))

    def _identify(self, fd: int, cns: int, nsid: int) -> bytes:
        page = ffi.new("uint8_t[]", IDENTIFY_SIZE)
        args = self._arguments("struct nvme_identify_args", fd, {"data": page, "cns": cns, "nsid": nsid})
        self._check(self._lib.nvme_identify(args))
        return bytes(ffi.buffer(page))

    @staticmethod
    def _arguments(kind: str, fd: int, what: dict[str, Any]) -> Any:
        return ffi.new(f"{kind} *", {"args_size": ffi.sizeof(kind), "fd": fd, "timeout": _TIMEOUT_MS, **what})

    def _check(self, result: int) -> None:
        if result < 0:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        if result > 0:
            raise StatusError(string(self._lib.nvme_status_to_string(result, False)))
