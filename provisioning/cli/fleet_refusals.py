"""Why a fleet, or a change of one, is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from devices.errors import FleetSpecError
from provisioning.errors import CertificateError, RequestError


class FleetRefusedError(RequestError):
    """A fleet, or a change of one, that can't be as it was asked for."""

    status = 409
    title = "Fleet refused"

    @classmethod
    def unprocessable(cls, reason: str) -> FleetRefusedError:
        """For what could be nowhere, whatever there is already."""
        error = cls(reason)
        error.status = 422
        return error


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """What can't be, as a refusal that names the key and the remedy."""
    try:
        yield
    except FleetSpecError as error:
        raise FleetRefusedError.unprocessable(str(error)) from error


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """A record or a certificate that can't be written, as a refusal."""
    try:
        yield
    except CertificateError as error:
        refused = FleetRefusedError(str(error))
        refused.status = 503
        raise refused from error
    except OSError as error:
        refused = FleetRefusedError(f"the fleet's record can't be written ({error.strerror}): make room")
        refused.status = 503
        raise refused from error
