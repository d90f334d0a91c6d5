"""What can be asked of `kpoll net`, and which requests make no sense whatever the host is like."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from kpoll.backend.config import MetricsConfig, SocketConfig
from kpoll.backend.errors import UsageError
from kpoll.backend.net_options import (
    EchoBackend,
    Endpoint,
    NetConfig,
    NullBackend,
    TapBackend,
    TapFdBackend,
    UdpBackend,
    VxlanBackend,
    XdpBackend,
    mac_text,
    parse_backend,
    parse_mac,
    random_mac,
)
from kpoll.backend.poll import PollConfig

MAC = bytes.fromhex("525400123456")


def config(**options: Any) -> NetConfig:
    card: dict[str, Any] = {
        "socket": SocketConfig(path="/run/s"),
        "poll": PollConfig(strategy="off", why="a test"),
        "backend": NullBackend(),
        "mac": MAC,
    }
    return NetConfig(**{**card, **options})


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ("tap:vm1", TapBackend("vm1")),
        ("tap:abcdefghijklmno", TapBackend("abcdefghijklmno")),
        ("tap:br-0.100", TapBackend("br-0.100")),
        ("tap-fd:5", TapFdBackend(5)),
        (
            "udp:192.0.2.1:4000,192.0.2.2:4001",
            UdpBackend(Endpoint(IPv4Address("192.0.2.1"), 4000), Endpoint(IPv4Address("192.0.2.2"), 4001)),
        ),
        (
            "udp:[::]:65535,[2001:db8::1]:1",
            UdpBackend(Endpoint(IPv6Address("::"), 65535), Endpoint(IPv6Address("2001:db8::1"), 1)),
        ),
        (
            "udp:[fe80::1%eth0]:4000,[fe80::2%eth0]:4000",
            UdpBackend(Endpoint(IPv6Address("fe80::1%eth0"), 4000), Endpoint(IPv6Address("fe80::2%eth0"), 4000)),
        ),
        (
            "vxlan:vni=16777215,local=192.0.2.1,remote=192.0.2.2",
            VxlanBackend(16777215, Endpoint(IPv4Address("192.0.2.1"), 4789), Endpoint(IPv4Address("192.0.2.2"), 4789)),
        ),
        (
            "vxlan:vni=0,local=2001:db8::1,remote=2001:db8::2,port=8472",
            VxlanBackend(0, Endpoint(IPv6Address("2001:db8::1"), 8472), Endpoint(IPv6Address("2001:db8::2"), 8472)),
        ),
        ("xdp:eth0", XdpBackend("eth0")),
        ("xdp:eth0.5,queue=12", XdpBackend("eth0.5", 12)),
        ("null", NullBackend()),
        ("null:0", NullBackend(0)),
        ("null:1500", NullBackend(1500)),
        ("echo", EchoBackend()),
    ],
)
def test_a_backend_is_what_it_says_and_says_what_it_is(text: str, backend: object) -> None:
    assert parse_backend(text) == backend
    assert str(backend) == text
    assert config(backend=parse_backend(text)).device == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "give tap:NAME, tap-fd:N"),
        ("bridge:br0", "give tap:NAME, tap-fd:N"),
        ("null:", "14 to 65550"),
        ("null:13", "14 to 65550"),
        ("null:65551", "14 to 65550"),
        ("null:-1", "14 to 65550"),
        ("echo:", "give tap:NAME, tap-fd:N"),
        ("tap", "names no interface"),
        ("tap:", "names no interface"),
        ("tap:abcdefghijklmnop", "at most 15 bytes"),
        ("tap:ääääääää", "at most 15 bytes"),
        ("tap:tap%d", "is no interface's name"),
        ("tap:a/b", "is no interface's name"),
        ("tap:a b", "is no interface's name"),
        ("tap:a:b", "is no interface's name"),
        ("tap:..", "is no interface's name"),
        ("tap:a\0", "is no interface's name"),
        ("tap-fd:", "the number of an open descriptor"),
        ("tap-fd:-1", "the number of an open descriptor"),
        ("tap-fd:x", "the number of an open descriptor"),
        ("udp:", "give both ends"),
        ("udp:192.0.2.1:4000", "give both ends"),
        ("udp:1.2.3.4:1,1.2.3.5:1,1.2.3.6:1", "give both ends"),
        ("udp:192.0.2.1,192.0.2.2:4000", "give ADDR:PORT"),
        ("udp:192.0.2.1:0,192.0.2.2:4000", "give ADDR:PORT"),
        ("udp:192.0.2.1:4000,192.0.2.2:65536", "give ADDR:PORT"),
        ("udp:::1:4000,::2:4000", "give ADDR:PORT"),
        ("udp:host.example:4000,192.0.2.2:4000", "host.example is no IP address"),
        ("udp::4000,192.0.2.2:4000", "nothing is no IP address"),
        ("udp:[192.0.2.1]:4000,192.0.2.2:4000", "192.0.2.1 is no IP address"),
        ("udp:192.0.2.1:4000,[2001:db8::1]:4000", "two of a kind"),
        ("udp:192.0.2.1:4000,239.0.0.1:4000", "unicast"),
        ("udp:192.0.2.1:4000,255.255.255.255:4000", "unicast"),
        ("udp:[2001:db8::1]:4000,[ff02::1]:4000", "unicast"),
        ("udp:192.0.2.1:4000,0.0.0.0:4000", "nobody's address"),
        ("udp:192.0.2.1:4000,192.0.2.1:4000", "both ends are the same"),
        ("vxlan", "give vni=N,local=IP,remote=IP"),
        ("vxlan:id=1,local=192.0.2.1,remote=192.0.2.2", "not 'id=1'"),
        ("vxlan:local=192.0.2.1,remote=192.0.2.2", "vni is missing"),
        ("vxlan:vni=,local=192.0.2.1,remote=192.0.2.2", "vni is missing"),
        ("vxlan:vni=1,remote=192.0.2.2", "local is missing"),
        ("vxlan:vni=1,local=192.0.2.1", "remote is missing"),
        ("vxlan:vni=1,vni=2,local=192.0.2.1,remote=192.0.2.2", "vni is there twice"),
        ("vxlan:vni=16777216,local=192.0.2.1,remote=192.0.2.2", "vni is a number up to 16777215"),
        ("vxlan:vni=-1,local=192.0.2.1,remote=192.0.2.2", "vni is a number up to 16777215"),
        ("vxlan:vni=1,local=192.0.2.1,remote=192.0.2.2,port=65536", "port is a number up to 65535"),
        ("vxlan:vni=1,local=192.0.2.1,remote=192.0.2.2,port=0", "port 0 is nobody's"),
        ("vxlan:vni=1,local=host.example,remote=192.0.2.2", "local=host.example is no IP address"),
        ("vxlan:vni=1,local=[192.0.2.1],remote=192.0.2.2", "local=[192.0.2.1] is no IP address"),
        ("vxlan:vni=1,local=[fd00::1,remote=fd00::2", "local=[fd00::1 is no IP address"),
        ("vxlan:vni=1,local=192.0.2.1,remote=2001:db8::2", "two of a kind"),
        ("vxlan:vni=1,local=192.0.2.1,remote=239.1.1.1", "unicast"),
        ("vxlan:vni=1,local=2001:db8::1,remote=ff05::1", "unicast"),
        ("vxlan:vni=1,local=192.0.2.1,remote=0.0.0.0", "give the peer's as remote"),
        ("vxlan:vni=1,local=192.0.2.1,remote=192.0.2.1", "both ends are the same"),
        ("xdp:", "names no interface"),
        ("xdp:eth0,queue", "give xdp:IFACE,queue=N"),
        ("xdp:eth0,queue=1024", "N from 0 to 1023"),
        ("xdp:a b", "is no interface's name"),
    ],
)
def test_any_other_backend_is_a_usage_error(text: str, says: str) -> None:
    with pytest.raises(UsageError, match="--backend") as refused:
        parse_backend(text)
    assert f"--backend {text}" in str(refused.value)
    assert says in str(refused.value)


def test_an_ipv6_address_of_a_vxlan_may_be_in_brackets() -> None:
    backend = parse_backend("vxlan:vni=7,local=[fe80::1%eth0],remote=2001:db8::2")
    assert str(backend) == "vxlan:vni=7,local=fe80::1%eth0,remote=2001:db8::2"


def test_the_words_of_a_vxlan_come_in_any_order() -> None:
    text = "vxlan:remote=192.0.2.2,port=4789,vni=7,local=192.0.2.1"
    assert str(parse_backend(text)) == "vxlan:vni=7,local=192.0.2.1,remote=192.0.2.2"


@pytest.mark.parametrize("text", ["52:54:00:12:34:56", "02:00:00:00:00:00", "FE:ff:ff:ff:ff:ff"])
def test_a_mac_is_six_bytes_in_hexadecimal(text: str) -> None:
    assert mac_text(parse_mac(text)) == text.lower()


@pytest.mark.parametrize(
    "text", ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "525400123456", "52-54-00-12-34-56", "52:54:00:12:34:5g"]
)
def test_anything_else_is_no_mac(text: str) -> None:
    with pytest.raises(UsageError, match=r"--mac .*give six bytes"):
        parse_mac(text)


@pytest.mark.parametrize("text", ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01", "00:00:00:00:00:00"])
def test_an_address_that_no_single_card_has_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--mac .*unicast"):
        parse_mac(text)


def test_a_made_up_mac_is_unicast_locally_administered_and_another_one_each_time() -> None:
    macs = [random_mac() for _ in range(100)]
    assert {mac[0] & 3 for mac in macs} == {2}
    assert {len(mac) for mac in macs} == {6}
    assert len(set(macs)) == 100


@pytest.mark.parametrize("mtu", [68, 1500, 9000, 65535, None])
def test_an_mtu_is_what_the_specification_allows(mtu: int | None) -> None:
    assert config(mtu=mtu).mtu == mtu


@pytest.mark.parametrize("mtu", [-1, 0, 67, 65536])
def test_any_other_mtu_is_refused(mtu: int) -> None:
    with pytest.raises(UsageError, match=f"--mtu {mtu}: give 68 to 65535"):
        config(mtu=mtu)


@pytest.mark.parametrize("pairs", [1, 128])
def test_a_card_has_as_many_queue_pairs_as_vhost_user_can_number(pairs: int) -> None:
    assert config(num_queue_pairs=pairs).num_queue_pairs == pairs


@pytest.mark.parametrize("pairs", [-1, 0, 129])
def test_any_other_number_of_queue_pairs_is_refused(pairs: int) -> None:
    with pytest.raises(UsageError, match=f"--num-queue-pairs {pairs}: give 1 to 128"):
        config(num_queue_pairs=pairs)


def test_one_descriptor_is_one_queue_pair() -> None:
    with pytest.raises(UsageError, match=r"--num-queue-pairs 2: .* use --backend tap:NAME for more"):
        config(backend=TapFdBackend(5), num_queue_pairs=2)


def test_one_descriptor_is_not_both_the_tap_and_the_front_end() -> None:
    with pytest.raises(UsageError, match="--backend tap-fd:5: is the descriptor of --fd"):
        config(backend=TapFdBackend(5), socket=SocketConfig(fd=5))


def test_front_ends_and_metrics_do_not_share_a_socket() -> None:
    with pytest.raises(UsageError, match="another path"):
        config(metrics=MetricsConfig(path="/run/../run/s"))
