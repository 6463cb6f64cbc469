"""The way to a DICOMweb archive: TLS that is verified, credentials that stay with its host, answers within bounds."""

from __future__ import annotations

import io
import ipaddress
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth
from urllib3.exceptions import HTTPError
from urllib3.response import HTTPResponse

from eucaim_fl.errors import ImportFailedError

__all__ = ["CREDENTIALS", "Session", "blocks_of", "credentials", "origin_of"]

CREDENTIALS = ("EUCAIM_FL_DICOMWEB_USER", "EUCAIM_FL_DICOMWEB_PASSWORD", "EUCAIM_FL_DICOMWEB_TOKEN")
"""Environment variables that credentials come from: user and password, or a bearer token."""
_BLOCK = 256 * 1024
_LARGEST_ANSWER = 64 * 1024 * 1024


class _Bearer(AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def credentials(environment: Mapping[str, str] | None = None) -> AuthBase | None:
    """What to authenticate with, from environment variables; None if they hold nothing.

    Raises ImportFailedError if there is a user without password (or the other way round), or a token as well.
    """
    values = os.environ if environment is None else environment
    user, password, token = (values.get(name, "") for name in CREDENTIALS)
    if bool(user) != bool(password) or (token and user) or any(c in token for c in "\r\n"):
        raise ImportFailedError(
            "The credentials for the archive are incomplete or contradict each other.",
            fix=f"Set {CREDENTIALS[0]} and {CREDENTIALS[1]}, or {CREDENTIALS[2]} alone.",
        )
    if token:
        return _Bearer(token)
    return HTTPBasicAuth(user.encode(), password.encode()) if user else None


def origin_of(url: str, *, insecure_http: bool = False) -> tuple[str, str, int]:
    """Scheme, host and port of an archive's address.

    Raises ImportFailedError if it is no http(s) address, holds credentials, or is plain http to another machine
    without `insecure_http`.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ImportFailedError(
            "The archive's address is not one of DICOMweb.", fix="It looks like https://pacs.hospital/dicom-web."
        )
    if parts.username is not None or parts.password is not None:
        raise ImportFailedError(
            "The archive's address holds credentials.",
            fix=f"Put them into {CREDENTIALS[0]} and {CREDENTIALS[1]}; addresses are seen by everyone on this machine.",
        )
    if parts.scheme == "http" and not insecure_http and not _is_loopback(host):
        raise ImportFailedError(
            "The archive's address is plain http: everyone on the network could read and change the images.",
            fix="Use https, or allow it with --insecure-http where the network is safe otherwise.",
        )
    return parts.scheme, host.lower(), port or {"http": 80, "https": 443}[parts.scheme]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Adapter(HTTPAdapter):
    """Bounds answers that aren't streamed, and takes warnings out that a library would print."""

    def send(self, request: requests.PreparedRequest, stream: bool = False, *args: Any, **kwargs: Any) -> Any:
        response = super().send(request, True, *args, **kwargs)
        response.headers.pop("Warning", None)
        if not stream:
            body = b"".join(blocks_of(response, _LARGEST_ANSWER, time.monotonic() + 300))
            response.raw = HTTPResponse(io.BytesIO(body), status=response.status_code, preload_content=False)
        return response


class Session(requests.Session):
    """HTTP to one archive and nobody else. ca: certificates to trust instead of the system's; None for those.

    Redirects to another scheme, host or port raise ImportFailedError; proxies and credentials in files of this
    user are not used.
    Raises ImportFailedError if the address can't be used (see `origin_of`), or there is no file `ca`.
    """

    def __init__(
        self, url: str, auth: AuthBase | None = None, *, ca: Path | None = None, insecure_http: bool = False
    ) -> None:
        super().__init__()
        self._origin = origin_of(url, insecure_http=insecure_http)
        self._insecure = insecure_http
        if ca is not None and not ca.is_file():
            raise ImportFailedError("The file of trusted certificates is missing.", local_detail=str(ca))
        self.trust_env = False
        self.verify = True if ca is None else str(ca)
        self.auth = auth
        self.max_redirects = 3
        self.headers["Accept-Encoding"] = "identity"  # a few bytes can't unpack to many then
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(max_retries=0))

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Where an answer redirects to, or None. Raises ImportFailedError if that is not the archive itself."""
        target = super().get_redirect_target(resp)
        if target is not None:
            full = urljoin(resp.url, target)
            try:
                same = origin_of(full.partition("?")[0].partition("#")[0], insecure_http=True) == self._origin
            except ImportFailedError:
                same = False
            if not same:
                raise ImportFailedError(
                    "The archive redirects to another address.",
                    fix="If that is right, import from that address.",
                    local_detail=full[:500],
                )
        return target


def blocks_of(response: requests.Response, limit: int, until: float) -> Iterator[bytes]:
    """The body of an answer as it comes. until: the moment (monotonic) by which it must be there.

    Raises ValueError if it is longer than `limit`, packed, or takes too long; ConnectionError if it breaks off.
    """
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ValueError("packed, though that was not asked for")
    total = 0
    try:
        for block in response.raw.stream(_BLOCK, decode_content=False):
            total += len(block)
            if total > limit:
                raise ValueError("longer than an answer may be")
            if time.monotonic() > until:
                raise ValueError("an answer that takes too long")
            yield block
    except (HTTPError, OSError) as problem:
        raise ConnectionError(type(problem).__name__) from None
