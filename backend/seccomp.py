"""A seccomp filter without the system calls that a disk server has no use for, made with libseccomp.

A list of what is forbidden, not of what is allowed: the daemon is Python, and what its libraries call changes with
every release of them. What counts is that a hijacked daemon can't start programs, look into other processes, reach the
network, load code into the kernel or make itself a namespace in which it is root. All of it answers EPERM.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DENIED: Final = (
    # other programs and processes
    "execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise",
    "kcmp", "pidfd_getfd", "pidfd_open", "pidfd_send_signal",
    # namespaces and mounts
    "unshare", "setns", "mount", "umount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen",
    "fsconfig", "fsmount", "fspick", "mount_setattr", "quotactl", "quotactl_fd", "swapon", "swapoff",
    # the kernel itself
    "init_module", "finit_module", "delete_module", "create_module", "bpf", "kexec_load", "kexec_file_load",
    "perf_event_open", "reboot", "syslog", "acct", "iopl", "ioperm", "modify_ldt", "lookup_dcookie", "nfsservctl",
    "add_key", "request_key", "keyctl", "userfaultfd", "open_by_handle_at", "name_to_handle_at", "fanotify_init",
    # time and names of the host
    "settimeofday", "stime", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname", "vhangup",
    # users
    "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid",
    # new sockets: those that we need are there, or come from accept
    "socket", "connect", "bind",
)  # fmt: skip

# What an AF_XDP socket that is opened again takes of them, by their first argument: AF_XDP, and AF_UNIX, by which
# if_nametoindex(3) asks; of bpf(2) BPF_MAP_UPDATE_ELEM and BPF_LINK_CREATE, which take what is open already.
_XDP: Final = {"socket": (44, socket.AF_UNIX), "bpf": (2, 28)}
_XDP_WHOLE: Final = ("bind",)
_ARGUMENT_VALUES: Final = 64  # there are no more families, nor commands

_SCMP_ACT_ALLOW: Final = 0x7FFF0000
_SCMP_ACT_ERRNO: Final = 0x00050000
_SCMP_ACT_KILL_PROCESS: Final = 0x80000000
_FILTER_MAX: Final = 4096 * 8  # bytes: as many instructions as the kernel takes, and less than a pipe holds
_SCMP_CMP_EQ: Final = 4
_SCMP_CMP_GE: Final = 5
_SCMP_CMP_MASKED_EQ: Final = 7
_NR_UNKNOWN: Final = -1  # __NR_SCMP_ERROR; pseudo numbers of other architectures are smaller still

_CLONE_THREAD: Final = 0x00010000
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2


class _ArgCmp(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def seccomp_missing() -> int:
    """Return 0 if the kernel takes filters, else the errno. No filter is installed: the kernel is handed none."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None, 0, 0) == 0:
        return 0
    error = ctypes.get_errno()
    return 0 if error == errno.EFAULT else error


def load_libseccomp() -> ctypes.CDLL:
    """Load libseccomp. Raises OSError when the host has none."""
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as error:
        raise OSError(errno.ENOENT, "libseccomp.so.2 isn't installed") from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_ArgCmp),
    ]
    return library


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def deny_syscalls(*, xdp: bool = False) -> None:
    """Install the filter for this thread and those it starts, with or without what AF_XDP takes.

    Raises OSError; nothing is denied then.
    """
    library = load_libseccomp()
    context = library.seccomp_init(_SCMP_ACT_ALLOW)
    if not context:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    try:
        for name in DENIED:
            if xdp and name in _XDP_WHOLE:
                continue
            number = library.seccomp_syscall_resolve_name(name.encode())
            if xdp and name in _XDP:
                _deny_other_values(library, context, number, _XDP[name])
            elif number != _NR_UNKNOWN:
                _check(library.seccomp_rule_add_array(context, _SCMP_ACT_ERRNO | errno.EPERM, number, 0, None))
        _deny_clone(library, context)
        _check(library.seccomp_load(context))
    finally:
        library.seccomp_release(context)


def filter_program(allowed: Mapping[str, Sequence[int]]) -> bytes:
    """Make a filter that kills the process at any system call but these. Raises OSError; nothing is installed.

    Args:
        allowed: By a system call's name what its first arguments have to be; none: anything.

    Returns an array of struct sock_filter.

    """
    library = load_libseccomp()
    context = library.seccomp_init(_SCMP_ACT_KILL_PROCESS)
    if not context:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        for name, values in allowed.items():
            number = library.seccomp_syscall_resolve_name(name.encode())
            rules = (_ArgCmp * len(values))(
                *(_ArgCmp(index, _SCMP_CMP_EQ, value, 0) for index, value in enumerate(values))
            )
            _check(library.seccomp_rule_add_array(context, _SCMP_ACT_ALLOW, number, len(values), rules))
        _check(library.seccomp_export_bpf(context, writer))
        return os.read(reader, _FILTER_MAX)
    finally:
        os.close(reader)
        os.close(writer)
        library.seccomp_release(context)


def _deny_other_values(library: ctypes.CDLL, context: int, number: int, allowed: tuple[int, ...]) -> None:
    """Deny a system call but for some values of its first argument: a rule can't compare one argument twice."""
    rules = [_ArgCmp(0, _SCMP_CMP_EQ, value, 0) for value in range(_ARGUMENT_VALUES) if value not in allowed]
    for rule in (*rules, _ArgCmp(0, _SCMP_CMP_GE, _ARGUMENT_VALUES, 0)):
        denied = _SCMP_ACT_ERRNO | errno.EPERM
        _check(library.seccomp_rule_add_array(context, denied, number, 1, ctypes.byref(rule)))


def _deny_clone(library: ctypes.CDLL, context: int) -> None:
    """Leave of clone(2) what makes a thread. A filter can't read clone3's arguments: ENOSYS makes libc use clone."""
    clone = library.seccomp_syscall_resolve_name(b"clone")
    not_a_thread = _ArgCmp(0, _SCMP_CMP_MASKED_EQ, _CLONE_THREAD, 0)
    _check(library.seccomp_rule_add_array(context, _SCMP_ACT_ERRNO | errno.EPERM, clone, 1, ctypes.byref(not_a_thread)))
    clone3 = library.seccomp_syscall_resolve_name(b"clone3")
    _check(library.seccomp_rule_add_array(context, _SCMP_ACT_ERRNO | errno.ENOSYS, clone3, 0, None))
