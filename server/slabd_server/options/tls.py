"""Whether the TLS files of a configuration can be used, found out before gRPC says merely that it could not bind.

Reads the files that the configuration names; changes nothing.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from slabd_server.options.declare import ConfigError, Problem, Setting

if TYPE_CHECKING:
    from slabd_server.config import Loaded


def require_tls_files(loaded: Loaded) -> None:
    """Refuse TLS files that cannot be read, are no PEM, or do not belong together.

    Raises:
        ConfigError: it lists every problem.
    """
    settings = loaded.settings
    named = [each for each in (settings[name] for name in ("tls_cert", "tls_key", "tls_client_ca")) if each.value]
    problems = [problem for each in named if (problem := _unreadable(each))]
    if not problems and settings["tls_cert"].value is not None:
        problems = _mismatches(settings["tls_cert"], settings["tls_key"], settings["tls_client_ca"])
    if problems:
        raise ConfigError(problems)


def _unreadable(setting: Setting) -> Problem | None:
    try:
        setting.value.read_bytes()
    except OSError as error:
        return Problem(setting.source, f"{setting.words!r} cannot be read: {error.strerror}")
    return None


def _mismatches(cert: Setting, key: Setting, client_ca: Setting) -> list[Problem]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    problems = []
    try:
        # An encrypted key would have OpenSSL ask on the terminal; gRPC cannot use one anyway.
        context.load_cert_chain(cert.value, key.value, password="")
    except (ssl.SSLError, ValueError) as error:
        problems.append(
            Problem(cert.source, f"{cert.words!r} and {key.words!r} are no certificate and its key: {error}")
        )
    if client_ca.value is not None:
        try:
            context.load_verify_locations(client_ca.value)
        except ssl.SSLError as error:
            problems.append(Problem(client_ca.source, f"{client_ca.words!r} has no certificates: {error}"))
    return problems
