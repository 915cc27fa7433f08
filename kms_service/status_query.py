"""Asks a running service on this machine how it is."""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException
from typing import Any

from kms_service.config import Config
from kms_service.domain.errors import ConfigurationError, ServiceUnreachable

_TIMEOUT_S = 5.0
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask, not to listen


def ask(config: Config) -> dict[str, Any]:
    """What `/status` tells.

    Raises:
        ServiceUnreachable: nothing answers there, or nothing of ours.
        ConfigurationError: the port is chosen at start, and there is no port file to look into.
    """
    host, port = _address(config)
    connection = HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/status")
        facts = json.loads(connection.getresponse().read())
    except (OSError, HTTPException, ValueError) as error:
        raise ServiceUnreachable(f"no service answers at {host}:{port}") from error
    finally:
        connection.close()
    if not isinstance(facts, dict) or "state" not in facts:
        raise ServiceUnreachable(f"what answers at {host}:{port} is no ModelKMS service")
    return facts


def _address(config: Config) -> tuple[str, int]:
    host, _, port = config.metrics.listen.rpartition(":")
    host = host.strip("[]")
    if int(port) == 0:
        file = config.server.port_file
        try:
            port = json.loads(file.read_text())["metrics"] if file is not None else "0"
        except (OSError, ValueError, KeyError) as error:
            raise ServiceUnreachable("no service runs: its port file is not there") from error
        if file is None:
            raise ConfigurationError("metrics.listen: has port 0; set server.port_file too")
    return _EVERY_ADDRESS.get(host, host), int(port)
