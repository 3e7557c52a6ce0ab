"""TLS files are read for each connection, and an encrypted key never asks on the terminal."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from message_hub_sync.config.tls_files import TLSFiles
from message_hub_sync.errors import MessageHubConfigurationError

PASSWORD = "s3cret"


def pair(directory: Path, name: str, *options: str) -> TLSFiles:
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", f"/CN={name}",
         "-keyout", str(key), "-out", str(certificate), *options],
        check=True, capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return TLSFiles(certfile=str(certificate), keyfile=str(key))


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> TLSFiles:
    return pair(tmp_path_factory.mktemp("keys"), "encrypted", "-passout", f"pass:{PASSWORD}")


def test_an_encrypted_key_without_its_password_is_a_configuration_error(encrypted: TLSFiles) -> None:
    with pytest.raises(MessageHubConfigurationError, match="the key is encrypted: add password="):
        encrypted.context()


def test_an_encrypted_key_is_read_with_its_password(encrypted: TLSFiles) -> None:
    TLSFiles(certfile=encrypted.certfile, keyfile=encrypted.keyfile, password=PASSWORD).context()


@pytest.mark.parametrize("password", ["wrong", "x" * 5000])
def test_a_wrong_password_is_a_configuration_error_that_does_not_show_it(encrypted: TLSFiles, password: str) -> None:
    files = TLSFiles(certfile=encrypted.certfile, keyfile=encrypted.keyfile, password=password)
    with pytest.raises(MessageHubConfigurationError, match="and the password of an encrypted key") as caught:
        files.context()
    assert password not in str(caught.value)
    assert password not in repr(files)


def test_a_key_inside_the_certificates_file_needs_its_password_too(encrypted: TLSFiles, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_text(Path(str(encrypted.keyfile)).read_text() + Path(str(encrypted.certfile)).read_text())
    with pytest.raises(MessageHubConfigurationError, match="the key is encrypted"):
        TLSFiles(certfile=str(both)).context()
    TLSFiles(certfile=str(both), password=PASSWORD).context()


def test_files_that_were_renewed_are_used_by_the_next_context(tmp_path: Path) -> None:
    first, second = pair(tmp_path, "first", "-nodes"), pair(tmp_path, "second", "-nodes")
    files = TLSFiles(cacertfile=first.certfile)
    assert "first" in str(files.context().get_ca_certs())
    shutil.copy(str(second.certfile), str(first.certfile))
    assert "second" in str(files.context().get_ca_certs())
