"""TLS 1.3 only: set before grpc is first used, since its core reads the environment once.

gRPC has no option for the lowest TLS version. TLS 1.3 suites are not negotiable in BoringSSL, so
the list below names the only TLS 1.2 suite left, and that one needs an RSA key: with an ECDSA
server key (`rpc/tls.py` takes no other) a TLS 1.2 handshake finds no shared cipher and fails.
The list must not be empty: BoringSSL would then refuse TLS 1.3 too.

Import this module before anything that imports grpc, whose core reads it then. That it took hold
is not believed but tried: `rpc/server.py` offers itself a TLS 1.2 handshake at start.
"""

from __future__ import annotations

import os

VARIABLE = "GRPC_SSL_CIPHER_SUITES"
SUITES = "ECDHE-RSA-AES256-GCM-SHA384"

os.environ[VARIABLE] = SUITES
# grpc's core writes lines of its own shape to standard error, one for each failed handshake; ours
# are one JSON object each. Who debugs grpc sets the variable and gets them back.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
