"""Where the API listens, who may ask it, and by which certificate."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .api_tokens import TOKEN_FILES, VARIABLES, Token, Tokens, check_token, provide_token
from .errors import SettingsError
from .secret_files import secret_of

DEFAULT_API_HOST: Final = "127.0.0.1"
LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "::1")
"""By which a service is asked that needs no token."""

_AUTH: Final = ("auto", "always")


def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, is this machine's own and no other can reach it."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


@dataclass(frozen=True, kw_only=True)
class ApiSettings:
    """Who may ask the API, and where; checked on construction (SettingsError).

    The messages name the variables of the environment, where these come from.
    """

    host: str = DEFAULT_API_HOST
    always: bool = False
    """A token on loopback too."""
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    read_token: str | None = field(default=None, repr=False)
    read_token_file: Path | None = None
    certificate: Path | None = None
    """With ``key``: the API is by TLS."""
    key: Path | None = None

    def __post_init__(self) -> None:
        if not is_loopback(self.host):
            try:
                ipaddress.ip_address(self.host)
            except ValueError:
                raise SettingsError(
                    f"MUSTER_HOST is {self.host!r}: give an address of this machine, 0.0.0.0 for all "
                    f"of IPv4, or :: for those of IPv6 too."
                ) from None
        for token, name in ((self.token, VARIABLES["full"]), (self.read_token, VARIABLES["read"])):
            if token is not None:
                check_token(token, name)
        if self.token is not None and self.token == self.read_token:
            raise SettingsError(
                f"{VARIABLES['read']} is the same as {VARIABLES['full']}: give who may only read another one."
            )
        if (self.certificate is None) != (self.key is None):
            raise SettingsError(
                "MUSTER_API_CERT_FILE and MUSTER_API_KEY_FILE go together: set both, or none."
            )
        if self.certificate is not None and self.key is not None:
            _check_pair(self.certificate, self.key)

    @property
    def token_needed(self) -> bool:
        """Whether everybody needs one; else only who is not on this machine, or may be somebody's proxy."""
        return (
            self.always
            or self.token is not None
            or self.token_file is not None
            # By another address of this machine than these nobody is let in without one.
            or self.host.lower() not in LOOPBACK_NAMES
        )

    def tokens(self, state_dir: Path) -> Tokens:
        """The tokens of the service of ``state_dir``: the full one is made where it is needed and missing.

        Raises StateError.
        """
        path = state_dir / TOKEN_FILES["full"]
        if self.token_needed and self.token is None and self.token_file is None:
            provide_token(path)
        return Tokens(
            full=Token(fixed=self.token, path=None if self.token else self.token_file or path),
            read=Token(
                fixed=self.read_token,
                path=None if self.read_token else self.read_token_file or state_dir / TOKEN_FILES["read"],
            ),
        )

    def shown(self, state_dir: Path | None) -> str | None:
        """What a client shows: a token given, else that of its service's state directory where it is known.

        One that may only read comes last.
        """
        for token, path in (
            (self.token, self.token_file),
            (None, None if state_dir is None else state_dir / TOKEN_FILES["full"]),
            (self.read_token, self.read_token_file),
        ):
            found = Token(fixed=token, path=path).current()
            if found is not None:
                return found
        return None

    @classmethod
    def read(cls, values: Mapping[str, str]) -> ApiSettings:
        """What MUSTER_HOST and the MUSTER_API_* variables say."""
        auth = values.get("MUSTER_API_AUTH") or "auto"
        if auth not in _AUTH:
            raise SettingsError(f"MUSTER_API_AUTH is {auth!r}. Use {' or '.join(_AUTH)}.")
        token, token_file = _given(values, VARIABLES["full"])
        read_token, read_token_file = _given(values, VARIABLES["read"])
        return cls(
            host=values.get("MUSTER_HOST") or DEFAULT_API_HOST,
            always=auth == "always",
            token=token,
            token_file=token_file,
            read_token=read_token,
            read_token_file=read_token_file,
            certificate=_path(values, "MUSTER_API_CERT_FILE"),
            key=_path(values, "MUSTER_API_KEY_FILE"),
        )


def _given(values: Mapping[str, str], name: str) -> tuple[str | None, Path | None]:
    """A token that a variable holds, or the file that has it, which may change."""
    token = secret_of(values, name)
    file = _path(values, f"{name}_FILE")
    if file is None:
        return token, None
    if not file.is_file():
        raise SettingsError(
            f"{name}_FILE names {file}, which is no file, and is read again meanwhile: name one."
        )
    check_token(token or "", f"{name}_FILE ({file})")
    return None, file


def _path(values: Mapping[str, str], name: str) -> Path | None:
    return Path(value) if (value := values.get(name)) else None


def _check_pair(certificate: Path, key: Path) -> None:
    import ssl  # here: every command reads the settings, and few need it

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"MUSTER_API_CERT_FILE {certificate} and MUSTER_API_KEY_FILE {key} can't be used "
            f"({getattr(error, 'strerror', None) or error}): give a certificate and its key, in PEM, "
            f"without a password."
        ) from None
