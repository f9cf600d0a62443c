"""Where the pages are: their root behind a proxy, and the ways a browser may be sent; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from runspan.errors import SettingError


@dataclass(frozen=True, slots=True)
class PublicUrl:
    """public_url: the server as browsers reach it, through whatever stands before it; "" when they reach it directly.

    SettingError when it is no such URL. A path in it is the prefix that the proxy takes away before it hands a request
    on.
    """

    public_url: str = ""

    def __post_init__(self) -> None:
        if not self.public_url:
            return
        try:
            parts = urlsplit(self.public_url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
            good = good and "@" not in parts.netloc and self.public_url.isascii() and self.public_url.isprintable()
            good = good and not set(self.public_url) & set(' ;,"\\')
        except ValueError:
            good = False
        if not good:
            raise SettingError(
                where="public url", expected="a URL such as https://runs.example.com", got=repr(self.public_url)
            )

    @property
    def root(self) -> str:
        """What stands before every path of a page, such as ``/runspan``; mostly nothing."""
        return urlsplit(self.public_url).path.rstrip("/")

    @property
    def secure(self) -> bool:
        """Whether browsers come over TLS, so that a cookie may say that it travels nowhere else."""
        return self.public_url.startswith("https://")

    @property
    def origin(self) -> str:
        """The origin that a browser names, or nothing when it is not known beforehand."""
        parts = urlsplit(self.public_url)
        return f"{parts.scheme}://{parts.netloc}".lower() if self.public_url else ""

    def login(self, then: str) -> str:
        """The login page. then: the path to go to afterwards, without the root."""
        return f"{self.root}/login" + (f"?next={quote(then, safe='/')}" if then != "/" else "")

    def run(self, run_id: str) -> str:
        """The page of a run."""
        return f"{self.root}/runs/{quote(run_id, safe='')}"


def local_target(text: str) -> str:
    """Where to go after a login: the text when it is a path of this server, else ``/``.

    Browsers read ``//host`` and ``/\\host`` as another host, and drop tabs and line ends before they look.
    """
    plain = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable() and "\\" not in text
    return text if plain else "/"
