"""Keys and certificates for a broker and its client, by openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["make_keys"]


def make_keys(folder: Path) -> Path:
    """ca.crt, keystore.pem of a broker named kafka (key in clear, then certificate), tls.crt and tls.key of a client."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not installed")
    _openssl(folder, "req -x509 -newkey rsa:2048 -days 2 -noenc -subj /CN=ca -keyout ca.key -out ca.crt")
    for name, subject in (("broker", "kafka"), ("tls", "cmt")):
        _openssl(folder, f"req -newkey rsa:2048 -noenc -subj /CN={subject} -keyout {name}.key -out {name}.csr")
        (folder / "names").write_text(f"subjectAltName=DNS:{subject}\n")
        _openssl(
            folder,
            f"x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.crt",
        )
    (folder / "keystore.pem").write_text((folder / "broker.key").read_text() + (folder / "broker.crt").read_text())
    return folder


def _openssl(folder: Path, words: str) -> None:
    subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)
