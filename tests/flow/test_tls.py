"""TLS on HTTP and MQTT, and a certificate that is replaced while everything runs."""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.support.plant import Plant
from tests.support.processes import free_port, wait_for

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


def _certificate(folder: Path, name: str) -> None:
    """A self-signed certificate for localhost, in place all at once."""
    made = [folder / f"{name}.key", folder / f"{name}.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-keyout", str(made[0]), "-out", str(made[1]),
         "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    made[0].replace(folder / "tls.key")
    made[1].replace(folder / "tls.pem")


def _presented(port: int) -> str:
    """The certificate that a TLS port presents, as PEM."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        context.wrap_socket(raw) as connection,
    ):
        found = connection.getpeercert(binary_form=True)
    assert found is not None
    return ssl.DER_cert_to_PEM_cert(found)


def test_both_doors_speak_tls_and_take_a_new_certificate_without_a_restart(tmp_path: Path) -> None:
    _certificate(tmp_path, "first")
    mqtts = free_port()
    plant = Plant(
        tmp_path,
        {
            "LINESHAFT_TLS_CERT": str(tmp_path / "tls.pem"),
            "LINESHAFT_TLS_KEY": str(tmp_path / "tls.key"),
            "LINESHAFT_MQTT_TLS_PORT": str(mqtts),
        },
    )
    ports = (plant.http_port, mqtts)
    try:
        plant.start(ready=lambda: _https_ready(plant, tmp_path / "tls.pem"))
        assert plant.facts["http"].startswith("https://")
        first = (tmp_path / "tls.pem").read_text()
        for port in ports:
            assert _presented(port).strip() == first.strip()
        _certificate(tmp_path, "second")
        second = (tmp_path / "tls.pem").read_text()
        for port in ports:
            wait_for(
                lambda port=port: _presented(port).strip() == second.strip(),
                seconds=15,
                what="the new certificate",
            )
        wait_for(lambda: _https_ready(plant, tmp_path / "tls.pem"), what="an answer over HTTPS")
    finally:
        plant.kill()


def _https_ready(plant: Plant, trust: Path) -> bool:
    context = ssl.create_default_context(cafile=str(trust))
    connection = http.client.HTTPSConnection("127.0.0.1", plant.http_port, context=context)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
