"""How the services reach one another: addresses, limits and encryption, as `deployment.yaml` has them.

A part of `services.settings`, which reads them. Knows no socket.
"""

from typing import Annotated

from msgspec import Meta, Struct

Bytes = Annotated[int, Meta(ge=1)]


class TlsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Files in PEM; one that is renewed is used by connections made from then on."""

    certificate: str
    """Of this machine. Its subject alternative names say which services run here: `URI:fairlead:executor`."""
    key: str
    """To the certificate, not encrypted and readable by its owner alone."""
    ca: str
    """The authority that has signed the certificates of all of this deployment's machines, and nothing else."""
    revoked: str = ""
    """The authority's list of those that count no more (a CRL): a machine whose certificate is on it is put out as soon
    as the file says so. Empty: there is none.
    """


class StreamSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How the services reach one another."""

    admission: str | tuple[str, ...] = "unix://{run}/admission.sock"
    """A list: so many processes, which share `store`. The first of them watches the policy file."""
    scheduler: str = "unix://{run}/scheduler.sock"
    secret_file: str = "{data}/streams.secret"  # noqa: S105  a path, not a secret
    max_frame_bytes: Bytes = 64 * 2**20
    buffer_bytes: Bytes = 8 * 2**20
    """Unsent bytes of one stream from which its peer counts as stalled."""
    silence_s: Annotated[float, Meta(ge=2, le=3600)] = 5.0
    """A neighbour is pinged each second; one that says nothing for so long is taken for dead and its stream closed."""
    lease_s: Annotated[float, Meta(gt=0)] = 30.0
    """How long admission waits for a scheduler that went away before it settles what that had in flight."""
    resume_s: Annotated[float, Meta(ge=0)] = 30.0
    """How long a request waits for a scheduler or an admission process that was lost, before it ends with an error."""
    tls: TlsSettings | None = None
    """Both ends of every tcp:// stream prove with certificates who they are, and nobody between reads along."""
    allow_plaintext: bool = False
    """Allow tcp:// beyond this machine without `tls`: whoever is on the network between can read and change all."""

    @property
    def admissions(self) -> tuple[str, ...]:
        """Where each admission process listens."""
        return (self.admission,) if isinstance(self.admission, str) else self.admission
