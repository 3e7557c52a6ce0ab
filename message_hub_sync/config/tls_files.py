"""The TLS settings of a URL: which files, and what is verified. They are read for each connection."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from message_hub_sync.errors import MessageHubConfigurationError

__all__ = ["TLSFiles"]


@dataclass(frozen=True)
class TLSFiles:
    """The TLS settings of one URL. Its ``repr`` has no password."""

    cacertfile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    password: str | None = field(default=None, repr=False)
    verify: bool = True
    check_name: bool = True
    """Whether the certificate must be for the host's name; only if ``verify`` is set."""

    def context(self) -> ssl.SSLContext:
        """Read the files into a new context.

        :raises MessageHubConfigurationError: a file cannot be used.
        """
        try:
            context = ssl.create_default_context(cafile=self.cacertfile)
            context.check_hostname = self.verify and self.check_name
            if not self.verify:
                context.verify_mode = ssl.CERT_NONE
            if self.certfile is not None:
                # Without a password, OpenSSL would ask for one on the terminal and wait.
                context.load_cert_chain(self.certfile, self.keyfile, self.password or _no_password)
        except _PasswordNeededError:
            raise MessageHubConfigurationError(
                "rabbitmq_url must have the option password with this keyfile (or certfile), because the key is "
                "encrypted: add password=…, percent-encoded, or use ssl_context="
            ) from None
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the file name, a long password
            raise MessageHubConfigurationError(
                "rabbitmq_url must name readable PEM files in cacertfile, certfile and keyfile, and the password of an "
                f"encrypted key: loading them failed ({type(error).__name__})"
            ) from None
        return context


class _PasswordNeededError(Exception):
    """The key is encrypted, and there is no password."""


def _no_password() -> str:
    raise _PasswordNeededError
