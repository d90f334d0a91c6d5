"""The distribution's libxdp and libbpf, as far as we use them (xdp/xsk.h, bpf/bpf.h).

Loaded when a card wants them, so that kpoll is built and runs without. They return 0, a descriptor, or -errno.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cffi import FFI

from .errors import KpollError

ffi: Final = FFI()
ffi.cdef("""
    struct xsk_ring { /* xsk_ring_prod and xsk_ring_cons alike */
        uint32_t cached_prod, cached_cons, mask, size;
        uint32_t *producer, *consumer;
        void *ring;
        uint32_t *flags;
    };
    struct xsk_umem_config { uint32_t fill_size, comp_size, frame_size, frame_headroom, flags; };
    struct xsk_socket_config { uint32_t rx_size, tx_size, libxdp_flags, xdp_flags; uint16_t bind_flags; };
    struct xsk_umem;
    struct xsk_socket;

    int xsk_umem__create(struct xsk_umem **umem, void *umem_area, uint64_t size, struct xsk_ring *fill,
                         struct xsk_ring *comp, const struct xsk_umem_config *config);
    int xsk_umem__delete(struct xsk_umem *umem);
    int xsk_socket__create(struct xsk_socket **xsk, const char *ifname, uint32_t queue_id, struct xsk_umem *umem,
                           struct xsk_ring *rx, struct xsk_ring *tx, const struct xsk_socket_config *config);
    void xsk_socket__delete(struct xsk_socket *xsk);
    int xsk_socket__fd(const struct xsk_socket *xsk);
    void *libxdp_set_print(void *fn);
""")
ffi.cdef("""
    struct bpf_insn { uint8_t code, registers; int16_t off; int32_t imm; };
    struct bpf_link_create_opts { size_t sz; uint32_t flags; uint64_t others[4]; };

    int bpf_map_create(int map_type, const char *map_name, uint32_t key_size, uint32_t value_size, uint32_t max_entries,
                       const void *opts);
    int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags);
    int bpf_prog_load(int prog_type, const char *prog_name, const char *license, const struct bpf_insn *insns,
                      size_t insn_cnt, const void *opts);
    int bpf_link_create(int prog_fd, int target_fd, int attach_type, const struct bpf_link_create_opts *opts);
    void *libbpf_set_print(void *fn);
""")

XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD: Final = 1


@dataclass(frozen=True)
class XdpLibraries:
    """The two libraries, told to print nothing: what goes wrong is said by us, in one line."""

    libxdp: Any
    libbpf: Any


def load_library(name: str, package: str, option: str) -> Any:
    """Load one. Raises KpollError, which begins with `option`, when it isn't installed."""
    try:
        return ffi.dlopen(name)
    except OSError:
        raise KpollError(
            f"{option}: AF_XDP takes the library {name}, which isn't here: install it (Debian: `apt install {package}`)"
        ) from None


def load_libraries(option: str) -> XdpLibraries:
    """Load both. Raises KpollError, which begins with `option`, when one isn't installed."""
    libraries = XdpLibraries(
        libxdp=load_library("libxdp.so.1", "libxdp1", option), libbpf=load_library("libbpf.so.1", "libbpf1", option)
    )
    libraries.libxdp.libxdp_set_print(ffi.NULL)
    libraries.libbpf.libbpf_set_print(ffi.NULL)
    return libraries
