"""TLS of the streams between machines: certificates by file, both ends verified, and who their holder may be.

A certificate says in its subject alternative names which services its holder may be: `URI:fairlead:executor`. Host
names count for nothing: machines move, and what must not happen is that an executor passes for admission. The files are
looked at for each new connection, so that a renewed certificate is used from the next one on; running streams go on.
Only another list of revoked certificates ends them: they connect again, whoever still may.

Python tells nothing of TLS 1.3's exporter, so the proof of the secret is bound to both certificates instead
(`Handshake.bind`): whoever stands between with certificates of its own passes on proofs that hold nowhere.
"""

import hashlib
import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from services.files import exposure
from services.framing import AddressError, HandshakeError
from services.stream_settings import TlsSettings

NAME = "fairlead:"
"""How the URI that names a service begins."""
OUTDATED = "the list of revoked certificates is another: who is not on it connects again"
BEGIN, END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contexts:
    """What was read of the files at one time."""

    listening: ssl.SSLContext
    connecting: ssl.SSLContext
    certificate: bytes
    """Ours, DER."""
    revoked: bytes
    """The list of those that count no more; empty: there is none."""


class Secured:
    """What one connection over TLS is made with, and whether that still holds."""

    def __init__(self, certificates: "Certificates") -> None:
        self._certificates = certificates
        self._contexts = certificates.now()

    @property
    def listening(self) -> ssl.SSLContext:
        """For the end that accepts."""
        return self._contexts.listening

    @property
    def connecting(self) -> ssl.SSLContext:
        """For the end that connects."""
        return self._contexts.connecting

    @property
    def certificate(self) -> bytes:
        """Ours, DER."""
        return self._contexts.certificate

    def is_outdated(self) -> bool:
        """Whether another list of revoked certificates is in force since: the peer may be on it."""
        return self._certificates.now().revoked != self._contexts.revoked


class Certificates:
    """The certificate, key and authority of this process, as the files are now.

    Raises:
        AddressError: at first, that they cannot be used; later a file that cannot is an error in the log, and what was
            read before goes on.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._seen = self._look()
        self._contexts = self._load()

    def now(self) -> Contexts:
        """For a new connection."""
        with self._lock:
            seen = self._look()
            if seen != self._seen:
                self._seen = seen
                try:
                    self._contexts = self._load()
                    log.info("%s was read again: new connections use it", self._settings.certificate)
                except AddressError as error:
                    log.error("%s; the certificate read before stays in use", error)  # noqa: TRY400  says it all
            return self._contexts

    def _look(self) -> list[tuple[int, int, int]]:
        """What tells one content of the files from another; nothing of a file that is not there."""
        seen = []
        for path in filter(None, msgspec.structs.astuple(self._settings)):
            try:
                state = Path(path).stat()
                seen.append((state.st_mtime_ns, state.st_size, state.st_ino))
            except OSError:
                seen.append((0, 0, 0))
        return seen

    def _load(self) -> Contexts:
        try:
            return self._read()
        except (OSError, ValueError) as error:  # one is being replaced: it was there a moment ago, or was another
            raise AddressError(f"streams.tls: its files cannot be read: {error}") from error

    def _read(self) -> Contexts:
        settings = self._settings
        for name, path in msgspec.structs.asdict(settings).items():
            if path and not Path(path).is_file():
                raise AddressError(f"streams.tls.{name}: {path}: there is no such file")
        if why := exposure(Path(settings.key)):
            raise AddressError(f"streams.tls.key: {why}")
        # Before it is used: if it is replaced meanwhile, what is used is newer, and the next look finds that.
        revoked = Path(settings.revoked).read_bytes() if settings.revoked else b""
        listening, connecting = self._context(ssl.PROTOCOL_TLS_SERVER), self._context(ssl.PROTOCOL_TLS_CLIENT)
        # Who comes again shows its certificate again.
        listening.num_tickets = 0
        # A file may hold the certificates of authorities in between behind its own.
        first = Path(settings.certificate).read_text().partition(END)[0]
        return Contexts(listening, connecting, ssl.PEM_cert_to_DER_cert(first[first.index(BEGIN) :] + END), revoked)

    def _context(self, side: int) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            # An encrypted key would be asked for at a terminal that nobody sees.
            context.load_cert_chain(settings.certificate, settings.key, password="")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            files = f"{settings.certificate} and {settings.key}"
            raise AddressError(f"streams.tls: {files} are no certificate and its key in PEM: {reason}") from error
        try:
            context.load_verify_locations(settings.ca)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise AddressError(f"streams.tls.ca: {settings.ca}: no authority's certificate in PEM: {reason}") from error
        if settings.revoked:
            self._refuse_revoked(context, settings.revoked)
        return context

    @staticmethod
    def _refuse_revoked(context: ssl.SSLContext, path: str) -> None:
        before = context.cert_store_stats()
        try:
            context.load_verify_locations(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise AddressError(f"streams.tls.revoked: {path}: no list of certificates in PEM: {reason}") from error
        # OpenSSL takes whatever the file holds: an authority in it would be believed.
        if context.cert_store_stats() != before | {"crl": before["crl"] + 1}:
            raise AddressError(f"streams.tls.revoked: {path}: holds other than one list, which it must")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def binding(connection: ssl.SSLObject | ssl.SSLSocket, own: bytes) -> bytes:
    """What the proof of the secret is bound to: the certificates of the listener and of the connector."""
    theirs = connection.getpeercert(binary_form=True) or b""
    pair = (own, theirs) if connection.server_side else (theirs, own)
    return b"".join(hashlib.sha256(certificate).digest() for certificate in pair)


def check_name(connection: ssl.SSLObject | ssl.SSLSocket, service: str) -> None:
    """Whether the peer's certificate lets it be this service.

    Raises:
        HandshakeError: it is for others.
    """
    named: Any = (connection.getpeercert() or {}).get("subjectAltName", ())
    uris = [str(value) for kind, value in named if kind == "URI"]
    if NAME + service not in uris:
        said = ", ".join(uris) or "no service"
        raise HandshakeError(f"its certificate is for {said}, and it says that it is {service} ({NAME}{service})")


def sentence(error: OSError) -> str:
    """What went wrong with a connection, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).lower().replace("_", " ")
        before, alert, what = reason.partition("alert ")
        if alert:
            return f"the peer refuses our certificate or our TLS: {what}"
        if reason in ("wrong version number", "record layer failure", "packet length too long"):
            return "the peer does not speak TLS; is streams.tls set at both ends?"
        return f"TLS failed: {before}"
    return error.strerror or str(error) or "closed during the handshake of TLS; the log of the other end says why"
