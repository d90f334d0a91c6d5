"""A network of a test's own: a namespace that lives as long as the block that made it.

What root may do there anybody may, where the host lets users make user namespaces: the user is root of that network,
and of nothing else.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from tests.vm.child import ChildError, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_CLONE_NEWNET = 0x40000000


class NetworkError(AssertionError):
    """There is no network of our own on this host, or not as wanted; says why."""


@dataclass(frozen=True)
class Network:
    """A network namespace, by a process that does nothing but live there."""

    pid: int

    def inside(self, *command: str) -> list[str]:
        """Return the command line that runs a command in this network."""
        user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        return ["nsenter", "--target", str(self.pid), *user, "--net", "--", *command]

    async def run(self, commands: str) -> None:
        """Run commands in this network, one per line.

        Raises:
            NetworkError: when one fails; with what it said.

        """
        for line in filter(None, map(str.strip, commands.splitlines())):
            done = await trio.run_process(
                self.inside(*shlex.split(line)), capture_stdout=True, stderr=subprocess.STDOUT, check=False
            )
            if done.returncode != 0:
                raise NetworkError(f"{line}: {done.stdout.decode(errors='replace').strip()}")

    def socket(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        """Make a socket of this network; takes root. It stays there, whoever uses it."""

        def make() -> socket.socket:
            with open(f"/proc/{self.pid}/ns/net") as namespace:  # noqa: PTH123 - a namespace is no file to read
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) < 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            return socket.socket(family, kind)

        with ThreadPoolExecutor(1) as thread:  # a network is a thread's: this one enters it, and ends
            return thread.submit(make).result()


@asynccontextmanager
async def own_network() -> AsyncIterator[Network]:
    """Make a network with nothing but a loopback interface, for the length of the block.

    Raises:
        NetworkError: when this host permits no such thing.

    """
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    async with running("unshare", ["unshare", *user, "--net", "sh", "-c", "echo made; exec cat"]) as child:
        try:
            await child.expect(lambda line: line == "made", "a network namespace", seconds=20)
        except ChildError as refused:
            raise NetworkError(" ".join(child.lines) or str(refused)) from refused
        network = Network(child.pid)
        await network.run("ip link set lo up")
        yield network
