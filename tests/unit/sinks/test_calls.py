"""One call of a webhook: where it may lead, what is sent, and what counts as an answer."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.catalogue import webhook_secret
from services.sinks._addresses import is_public, target_of
from services.sinks._calls import Answer, Caller
from services.sinks._message import signed
from tests.support.processes import free_port
from tests.support.receiver import Call, Receiver, receiving


class Names:
    """A DNS that answers what it is told; `asked` counts."""

    def __init__(self, *addresses: str) -> None:
        self.addresses, self.asked = addresses, list[str]()

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if not self.addresses:
            raise OSError("Name or service not known")
        return self.addresses


def call(url: str, body: bytes = b"{}", **given: Any) -> Answer:
    """One call."""
    given = {"seconds_max": 5.0, "private": True, "threads": 1} | given

    async def play() -> Answer:
        caller = Caller(**given)
        try:
            return await caller.post(url, {"webhook-id": "an id"}, body)
        finally:
            caller.close()

    return asyncio.run(play())


# -- where it may lead


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.3.4", "192.168.1.1"),
        *(
            "169.254.169.254",
            "100.64.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.2.1",
            "192.0.0.192",
            "192.0.0.8",
        ),
        *("198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "fec0::1", "ff02::1"),
        *("::127.0.0.1", "2001:db8::1", "2001::1"),
        # Other spellings of IPv4 addresses: mapped, NAT64, 6to4.
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
        *("64:ff9b:1::1", "2002:7f00:1::1", "2002:c0a8:101::1"),
    ],
)
def test_everything_else_is_not(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"])
def test_what_leads_to_a_public_address_in_the_end_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://example.com/", "file:///etc/passwd", "//example.com/", "example.com", ""),
        *("http://", "http:///path", "http://user@example.com/", "http://a:b@example.com/"),
        *("http://exa mple.com/", "http://example.com/a b", "http://example.com/\r\nX: y"),
        *("http://example.com\\@evil.com/", "http://example.com:0/", "http://example.com:99999/"),
        *("http://[::1", "http://[example]/", "http://exa%6dple.com/", "http://..com/"),
        *("http://example.com\t/", "http://ex\u2100mple.com/", "gopher://127.0.0.1:6379/_x"),
    ],
)
def test_a_url_that_is_none_of_an_endpoint_is_refused_for_good(url: str) -> None:
    names = Names("127.0.0.1")
    answer = call(url, resolve=names)
    assert answer.final and answer.problem.startswith("refused: ")
    assert names.asked == []


@pytest.mark.parametrize(
    ("url", "authority", "path"),
    [
        ("http://Example.com", "example.com", "/"),
        ("https://example.com:443/a?b=c#d", "example.com", "/a?b=c"),
        ("http://example.com:8080/ü?ö=%20", "example.com:8080", "/%C3%BC?%C3%B6=%20"),
        ("http://[2001:db8::1]:81/", "[2001:db8::1]:81", "/"),
        ("http://bücher.example/", "xn--bcher-kva.example", "/"),
    ],
)
def test_a_url_is_taken_apart_once(url: str, authority: str, path: str) -> None:
    target = target_of(url)
    assert (target.authority, target.path) == (authority, path)


@pytest.mark.parametrize(
    "addresses", [("127.0.0.1",), ("93.184.216.34", "10.0.0.1"), ("::ffff:127.0.0.1",)]
)
def test_a_name_with_one_private_address_is_refused_before_anything_is_sent(
    addresses: tuple[str, ...],
) -> None:
    with receiving() as receiver:
        url = f"http://hooks.example:{receiver.url.rpartition(':')[2]}/"
        answer = call(url, private=False, resolve=Names(*addresses))
        assert answer.final and "no public address" in answer.problem
        assert receiver.calls == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "2130706433", "[::1]"])
def test_spellings_of_this_machine_are_refused_by_the_real_look_up(host: str) -> None:
    with receiving() as receiver:
        answer = call(f"http://{host}:{receiver.url.rpartition(':')[2]}/", private=False)
        assert answer.problem and receiver.calls == []


def test_a_name_is_looked_up_once_and_called_at_the_address_that_was_looked_at() -> None:
    with receiving() as receiver:
        names, port = Names("127.0.0.1"), receiver.url.rpartition(":")[2]
        assert call(f"http://hooks.example:{port}/in?x=1", b'{"a":1}', resolve=names) == Answer()
        [got] = receiver.calls
        assert names.asked == ["hooks.example"]
        assert (got.path, got.body) == ("/in?x=1", b'{"a":1}')
        assert got.headers["host"] == f"hooks.example:{port}"
        assert got.headers["content-type"] == "application/json"
        assert got.headers["webhook-id"] == "an id"


def test_the_next_address_is_tried_where_one_takes_no_connection() -> None:
    with receiving() as receiver:
        port = receiver.url.rpartition(":")[2]
        answer = call(f"http://hooks.example:{port}/", resolve=Names("127.0.0.2", "127.0.0.1"))
        assert answer == Answer() and len(receiver.calls) == 1


# -- answers


@pytest.mark.parametrize(
    ("status", "taken", "final"),
    [
        *((200, True, False), (202, True, False), (204, True, False), (299, True, False)),
        *((301, False, False), (302, False, False), (307, False, False), (308, False, False)),
        *((400, False, False), (404, False, False), (410, False, True), (429, False, False)),
        *((500, False, False), (503, False, False)),
    ],
)
def test_only_2xx_is_taken_and_only_410_is_for_good(status: int, taken: bool, final: bool) -> None:
    with receiving() as receiver:
        receiver.answer = lambda call: status
        answer = call(receiver.url)
        assert (answer.problem == "", answer.final) == (taken, final)
        # A redirect leads nowhere.
        assert len(receiver.calls) == 1
        assert taken or str(status) in answer.problem


def said(raw: bytes) -> Answer:
    """What comes of an endpoint that answers so."""

    def answer(receiver: Receiver) -> Answer:
        receiver.answer = lambda call: raw
        return call(receiver.url)

    with receiving() as receiver:
        return answer(receiver)


def test_answers_before_the_final_one_are_passed_over() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    assert said(interim + b"HTTP/1.1 200 OK\r\n\r\n") == Answer()
    assert "500" in said(interim + b"HTTP/1.1 500 \r\n\r\n").problem


@pytest.mark.parametrize(
    "raw", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 20\r\n", b"x" * 100_000]
)
def test_what_is_no_answer_is_tried_again(raw: bytes) -> None:
    answer = said(raw)
    assert answer.problem and not answer.final


def test_a_body_is_not_read() -> None:
    began = time.monotonic()
    assert (
        said(b"HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n" + bytes(1 << 20)) == Answer()
    )
    assert time.monotonic() - began < 3


def test_no_name_no_connection_and_no_answer_in_time_are_tried_again() -> None:
    nowhere = call("http://nowhere.example/", resolve=Names())
    assert "not known" in nowhere.problem and not nowhere.final
    closed = call(f"http://127.0.0.1:{free_port()}/")
    assert closed.problem and not closed.final
    with receiving() as receiver:
        receiver.gate.clear()
        late = call(receiver.url, seconds_max=0.2)
        assert late == Answer("no answer within 0.2 s")


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_tls_is_verified_by_the_name_and_not_by_the_address(tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-keyout", "key", "-out", "pem", "-subj", "/CN=x",
         "-addext", "subjectAltName=DNS:hooks.example"],
        check=True, capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "pem", tmp_path / "key")
    trust = ssl.create_default_context(cafile=str(tmp_path / "pem"))
    with receiving(server) as receiver:
        port, names = receiver.url.rpartition(":")[2], Names("127.0.0.1")
        assert call(f"https://hooks.example:{port}/", resolve=names, trust=trust) == Answer()
        for url, given in (
            (f"https://other.example:{port}/", {"trust": trust}),
            (f"https://hooks.example:{port}/", {}),
        ):
            answer = call(url, resolve=names, **given)
            assert "certificate" in answer.problem.lower() and not answer.final
        assert [got.headers["host"] for got in receiver.calls] == [f"hooks.example:{port}"]


def test_a_signature_is_verified_by_somebody_else() -> None:
    secret = webhook_secret(b"the installation's", "t1")
    headers = signed(secret, "samples.accepted/3/1.7.0/t1", 1_700_000_000, b'{"a":1}')
    good = Call("/", headers, b'{"a":1}')
    assert good.is_signed_with(secret)
    assert not Call("/", headers, b'{"a":2}').is_signed_with(secret)
    assert not good.is_signed_with(webhook_secret(b"the installation's", "t2"))
    assert secret.startswith("whsec_")
