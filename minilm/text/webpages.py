"""Web pages fetched politely and within bounds, for crawls of millions of addresses.

Of one host one request at a time, a pause between two, only what its robots.txt allows (RFC 9309). What is bounded:
seconds and bytes of a page, redirects, tries, and how often a host may fail before its other pages are left alone.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from urllib.robotparser import RobotFileParser

from minilm import __version__
from minilm.text.encodings import detect

AGENT = "minilm"
PAGES = ("text/html", "application/xhtml+xml", "")
AGAIN = (408, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT_SECONDS = 60.0  # that Retry-After or Crawl-delay may ask for
CHUNK_BYTES = 1 << 16
CHARSET = re.compile(rb"<meta[^>]{1,200}?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
PAGE = "page"


@dataclass(frozen=True)
class Limits:
    """Of one process."""

    connections: int = 64
    pause_seconds: float = 1.0  # between two requests to one host
    timeout_seconds: float = 15.0  # until a host answers, and between two pieces
    page_seconds: float = 60.0  # for the whole page
    page_bytes: int = 4 << 20  # decompressed
    redirects: int = 5
    retries: int = 2
    host_failures: int = 3  # pages in a row without an answer, after which a host counts as gone


@dataclass(frozen=True)
class Fetched:
    """One address. `outcome` is "page", or why there is none; `text` the page's HTML."""

    url: str
    outcome: str
    text: str = ""


@dataclass
class _Host:
    lock: threading.Lock = field(default_factory=threading.Lock)
    robots: RobotFileParser | None = None
    failures: int = 0
    free_at: float = 0.0  # of time.monotonic()


class Fetcher:
    """Remembers robots.txt, pauses and failures of the hosts that it met."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._hosts: dict[str, _Host] = {}

    def fetch(self, urls: Sequence[str]) -> list[Fetched]:
        """Every address, in this order."""
        by_host: dict[str, list[int]] = {}
        for i, url in enumerate(urls):
            by_host.setdefault(host_of(url), []).append(i)
            self._hosts.setdefault(host_of(url), _Host())
        found: dict[int, Fetched] = {}

        def visit(host: str) -> None:
            with self._hosts[host].lock, self._session() as session:
                for i in by_host[host]:
                    found[i] = Fetched(urls[i], *self._page(session, self._hosts[host], urls[i]))

        longest_first = sorted(by_host, key=lambda host: -len(by_host[host]))
        with ThreadPoolExecutor(max(1, min(self.limits.connections, len(by_host)))) as pool:
            list(pool.map(visit, longest_first))
        return [found[i] for i in range(len(urls))]

    def _session(self) -> Any:
        import requests

        session = requests.Session()
        session.headers.update({"User-Agent": f"{AGENT}/{__version__}", "Accept": "text/html,application/xhtml+xml"})
        session.max_redirects = self.limits.redirects
        return session

    def _page(self, session: Any, host: _Host, url: str) -> tuple[str, str]:
        if host.failures >= self.limits.host_failures:
            return "host gone", ""
        if host.robots is None:
            parts = urlsplit(url)
            outcome, rules = self._tried(session, host, f"{parts.scheme}://{parts.netloc}/robots.txt", is_page=False)
            if not outcome.startswith(("HTTP 4", PAGE)):  # unreachable rules allow nothing
                host.failures += 1
                return outcome, ""
            host.robots = RobotFileParser()
            host.robots.parse(rules.splitlines() if outcome == PAGE else [])
        if not host.robots.can_fetch(AGENT, url):
            return "robots.txt forbids", ""
        outcome, text = self._tried(session, host, url)
        host.failures = host.failures + 1 if outcome in ("time-out", "no connection") else 0
        return outcome, text

    def _tried(self, session: Any, host: _Host, url: str, is_page: bool = True) -> tuple[str, str]:
        """The page, asked for again where that may help."""
        pause = self.limits.pause_seconds
        if host.robots is not None:
            pause = max(pause, min(float(host.robots.crawl_delay(AGENT) or 0), LONGEST_WAIT_SECONDS))
        for attempt in range(self.limits.retries + 1):
            time.sleep(max(host.free_at - time.monotonic(), 0))
            outcome, text, wait = self._asked(session, url, is_page)
            least = pause * 2**attempt if wait else pause
            host.free_at = time.monotonic() + max(least, min(wait, LONGEST_WAIT_SECONDS))
            if not wait:
                break
        return outcome, text

    def _asked(self, session: Any, url: str, is_page: bool) -> tuple[str, str, float]:
        """Outcome, text, and the seconds to wait before another try, 0 where there need not be one."""
        import requests
        import urllib3

        end = time.monotonic() + self.limits.page_seconds
        try:
            with session.get(url, stream=True, timeout=self.limits.timeout_seconds) as answer:
                if answer.status_code != 200:
                    asked = answer.headers.get("Retry-After", "")
                    wait = max(float(asked) if asked.isdecimal() else 0.0, 1e-3)
                    return f"HTTP {answer.status_code}", "", wait if answer.status_code in AGAIN else 0.0
                kind, _, settings = answer.headers.get("Content-Type", "").partition(";")
                if is_page and kind.strip().lower() not in PAGES:
                    return "no web page", "", 0.0
                data = bytearray()
                while piece := answer.raw.read1(CHUNK_BYTES, decode_content=True):
                    data += piece
                    if len(data) > self.limits.page_bytes:
                        return "too long", "", 0.0
                    if time.monotonic() > end:
                        return "time-out", "", 0.0
        except (requests.Timeout, urllib3.exceptions.ReadTimeoutError):
            return "time-out", "", 1e-3
        except requests.TooManyRedirects:
            return "too many redirects", "", 0.0
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError):  # or no address at all
            return "no connection", "", 1e-3
        declared = re.search(r"charset=[\"']?([\w.:-]+)", settings, re.IGNORECASE)
        text = decoded(bytes(data), declared[1] if declared else "")
        return ("no text", "", 0.0) if text is None else (PAGE, text, 0.0)


def host_of(url: str) -> str:
    return (urlsplit(url).hostname or "").removeprefix("www.")


def decoded(data: bytes, declared: str = "") -> str | None:
    """A page's text in the encoding that its host declares, that it declares itself, or that is guessed; None where it
    is no text."""
    meta = CHARSET.search(data[:4096])
    for name in (declared, meta[1].decode("ascii", "replace") if meta else "", detect(data) or ""):
        try:
            # Browsers read Latin-1 as Windows-1252 (WHATWG Encoding Standard, section 4.2).
            text = data.decode("cp1252" if name.lower() in ("iso-8859-1", "latin-1", "ascii") else name, "replace")
        except LookupError:
            continue
        return None if "\0" in text or text.count("\ufffd") * 50 > len(text) else text
    return None
