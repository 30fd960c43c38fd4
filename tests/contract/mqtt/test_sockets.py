"""What only sockets show: TLS, the sweeper at work, connections that end in the middle."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.ingress._mqtt_wire import V5
from tests.contract.mqtt._server import DEVICES, LOOPS, TOKEN, Server, serving
from tests.support.mqtt import connect, puback, publish

CONNACK = b"\x20\x02\x00\x00"


def receive(sock: socket.socket, count: int) -> bytes:
    """`count` bytes, or fewer if the other end closes."""
    data = b""
    while len(data) < count and (chunk := sock.recv(count - len(data))):
        data += chunk
    return data


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate and key for localhost."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return cert, key


@pytest.fixture(params=list(LOOPS))
def tls_server(
    request: pytest.FixtureRequest, tmp_path: Path, certificate: tuple[Path, Path]
) -> Iterator[Server]:
    """A door in plain and over TLS, with short patience."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    loop = LOOPS[request.param]()
    with serving(tmp_path, loop, tls=context, mqtt_connect_seconds_max=1) as server:
        yield server


def test_a_publish_over_tls(tls_server: Server, certificate: tuple[Path, Path]) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    plain = socket.create_connection(("127.0.0.1", tls_server.tls_port), timeout=20)
    with trusting.wrap_socket(plain, server_hostname="localhost") as sock:
        payload = b'{"a":[' + b"1," * 30_000 + b"1]}"
        sock.sendall(connect(token=TOKEN) + publish(payload, 1) + publish(b'{"b":1}', 2))
        assert receive(sock, 12) == CONNACK + puback(1) + puback(2)
    assert {key for _, key, _ in tls_server.stored()} == {"a", "b"}


def test_who_says_nothing_is_cut_off(tls_server: Server) -> None:
    sock = socket.create_connection(("127.0.0.1", tls_server.port), timeout=20)
    with sock, contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""


def test_who_says_nothing_more_is_told_that_its_credential_expired(server: Server) -> None:
    server.expires_ms = server.clock.now_ms() + 1_000
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(connect(V5, token=TOKEN) + publish(b'{"a":1}', 1, version=V5))
        told = receive(sock, 1_000)
    assert told.endswith(puback(1) + b"\xe0\x02\x87\x00")
    assert 0 <= server.clock.now_ms() - server.expires_ms < 5_000


def test_a_client_that_vanishes_harms_nobody(server: Server) -> None:
    address = ("127.0.0.1", server.port)
    for n in range(20):
        sock = socket.create_connection(address, timeout=20)
        # Closing with SO_LINGER 0 is a reset: what we answer meets a connection that is gone.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.sendall(connect(token=TOKEN, client_id=f"c{n}") + publish(b'{"a":1}', 1) * 50)
        if n % 2:
            receive(sock, 8)
        sock.close()
    with socket.create_connection(address, timeout=20) as sock:
        sock.sendall(connect(token="token-device-1") + publish(b'{"z":9}', 1))
        assert receive(sock, 8) == CONNACK + puback(1)
    assert server.stored()[DEVICES[1], "z", 9] == 1


def test_a_flood_of_qos_0_is_all_there(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(connect(token=TOKEN))
        for _ in range(50):
            sock.sendall(publish(b'{"a":1}') * 200)
        sock.sendall(publish(b'{"b":1}', 1))
        assert receive(sock, 8) == CONNACK + puback(1)
    assert server.stored()[DEVICES[0], "a", 1] == 10_000
