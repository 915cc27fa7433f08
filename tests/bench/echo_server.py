"""A bare gRPC server over the same mTLS and thread pool: the ceiling for leases a second.

It answers LeaseDataKey with fixed bytes of a real answer and does nothing else.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

import kms_service.rpc.tls_environment  # noqa: F401 - before grpc: TLS 1.3 only, as the service

METHOD = "LeaseDataKey"
SERVICE = "modelkms_api.v1.KeyService"


def main() -> None:
    """Arguments: certificate, key, client CA, file of the answer's bytes, file for the port,
    threads of the pool."""
    certificate, key, client_ca, answer_file, port_file = map(Path, sys.argv[1:6])
    answer = answer_file.read_bytes()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        lambda _request, _context: answer
    )
    server = grpc.server(ThreadPoolExecutor(int(sys.argv[6])))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
    )
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], client_ca.read_bytes(), True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    temporary = port_file.with_suffix(".new")
    temporary.write_text(str(port))
    temporary.replace(port_file)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
