"""What to say when a port cannot be had."""

from __future__ import annotations

import errno

from kms_service.domain.errors import ConfigurationError


def cannot_listen(field: str, address: str, error: Exception) -> ConfigurationError:
    """One line: the setting, what is wrong, what to do."""
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        why = "the port is in use; stop the other process or choose another port"
    elif isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        why = "not permitted; choose a port above 1023"
    else:
        why = "no such local address; use an address of this machine"
    return ConfigurationError(f"{field}: cannot listen on {address}: {why}")
