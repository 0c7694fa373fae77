"""Host names of peers: those that do not resolve are told once, by whom they are whose; numbers are not looked up."""

import asyncio
import socket

import pytest
from structlog.testing import capture_logs

from node.errors import Unreachable
from node.identity import Identity
from node.live.names import Names, check_resolves

ALICE = Identity.generate()


def card(address, node=1):
    return ALICE.card(node, address, "net")


@pytest.fixture
def asked(monkeypatch):
    """Every name that the resolver is asked for; it knows ``here.test`` alone."""
    names = []

    def resolve(host, *_, **__):
        names.append(host)
        if host != "here.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return names


async def told(names, *cards):
    with capture_logs() as logs:
        names.look(cards)
        while names._looking:
            await asyncio.sleep(0)
    return [(line["peer"], line["address"], line["detail"]) for line in logs]


async def test_a_name_that_does_not_resolve_is_told_once(asked):
    names = Names(0)
    wrong = card("tcp://nowhere.test:7600")
    [(peer, address, detail)] = await told(names, wrong, card("tcp://here.test:7600", 2))
    assert (peer, address) == (1, "tcp://nowhere.test:7600")
    assert detail.startswith("the name nowhere.test does not resolve here (Name or service not known)")
    assert await told(names, wrong) == []
    assert sorted(asked) == ["here.test", "nowhere.test"]


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tcp://[::1]:1", "tcp://[fe80::1%eth0]:1", "tcp://[::1:2"])
async def test_what_is_no_name_is_not_looked_up(asked, address):
    assert await told(Names(0), card(address)) == []
    check_resolves(address)
    assert asked == []


async def test_closing_ends_what_is_being_looked_up(monkeypatch):
    never = asyncio.get_running_loop().create_future()

    async def resolve(*_, **__):
        await never

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve, raising=False)
    names = Names(0)
    names.look([card("tcp://slow.test:1")])
    [looking] = names._looking
    await asyncio.sleep(0)
    names.close()
    await asyncio.gather(looking, return_exceptions=True)
    assert looking.cancelled()
    assert not names._looking


def test_a_visitor_is_told_of_its_own_name(asked):
    with pytest.raises(Unreachable, match=r"^tcp://nowhere.test:1: the name nowhere.test does not resolve here"):
        check_resolves("tcp://nowhere.test:1")
    check_resolves("tcp://here.test:1")
