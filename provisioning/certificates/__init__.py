"""Certificates: a certificate authority of the state directory's own, and what it issues.

`authority.CertificateAuthority` makes and opens it; `building` has the certificates as X.509 says, `records`
what was issued and revoked. Errors: `provisioning.errors.AuthorityError` and below.
"""

from __future__ import annotations

from .authority import (
    DEFAULT_DAYS,
    MAX_DAYS,
    SERVICE_NAME,
    Authority,
    Issued,
    write_private,
)

__all__ = ["DEFAULT_DAYS", "MAX_DAYS", "SERVICE_NAME", "Authority", "Issued", "write_private"]
