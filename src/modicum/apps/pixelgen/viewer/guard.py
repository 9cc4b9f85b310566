"""Who may look. A camera's pictures are private: without a token nobody but this machine gets them.

loopback      open to this machine. Pages of other sites, open in the same browser, are kept out: the Host must be a
              loopback name (else a name that is later pointed at 127.0.0.1 would do), the Origin this server
elsewhere     refused without a token. The token comes once in the address and then in a cookie; it is compared in
              constant time
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from modicum.errors import InvalidSetting

COOKIE = "modicum_viewer"


@dataclass(frozen=True)
class Guard:
    """The rules of one server.

    Attributes:
        host: that it binds to.
        token: secret; None lets this machine in, and nobody else.
    """

    host: str = "127.0.0.1"
    token: bytes | None = None

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            raise InvalidSetting(
                f"{self.host} can be reached from other machines, and the pictures are not protected.",
                "Give --token FILE with a secret, or --host 127.0.0.1.",
            )

    def admits(self, host: str, origin: str | None, given: str | None) -> bool:
        """Whether a request is answered.

        Args:
            host: its Host header.
            origin: its Origin header; None if there is none.
            given: the token that it brings.
        """
        if origin is not None and urlsplit(origin).netloc != host:
            return False
        if self.token is None:
            return is_loopback(urlsplit(f"//{host}").hostname or "")
        return hmac.compare_digest((given or "").encode("utf-8", "replace"), self.token)


def is_loopback(host: str) -> bool:
    """Whether a name or address never leaves this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
