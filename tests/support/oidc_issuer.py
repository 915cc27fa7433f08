"""An OpenID Connect issuer on loopback: discovery, keys and tokens over verified TLS.

Made by joserfc, another library than the service verifies with: so the two ends agree on the
standards, not on each other. It can rotate its keys, go away, and answer garbage.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from tests.support.certificates import TestAuthority
from tests.support.planted_secrets import plant_token

AUDIENCE = "modelkms"
SigningKey = ECKey | RSAKey | OKPKey


def signing_key(algorithm: str, kid: str) -> SigningKey:
    """A fresh key of the algorithm's kind."""
    parameters: Any = {"kid": kid, "alg": algorithm, "use": "sig"}
    match algorithm[:2]:
        case "ES":
            curve = {"ES256": "P-256", "ES384": "P-384"}[algorithm]
            return ECKey.generate_key(curve, parameters)
        case "Ed":
            return OKPKey.generate_key("Ed25519", parameters)
        case _:
            return RSAKey.generate_key(2048, parameters)


class OidcIssuer:
    """Running. `requests` counts what was asked of it, by path."""

    def __init__(self, folder: Path, algorithm: str = "ES256") -> None:
        self.algorithm = algorithm
        self.keys = [signing_key(algorithm, "first")]
        self.garbage: bytes | None = None
        self.requests: dict[str, int] = {}
        authority = TestAuthority("issuer.example", "issuer CA")
        authority.server().write(folder)
        self.ca_file = folder / "ca.pem"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        self._context = context
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """Its `iss`."""
        return f"https://localhost:{self._port}"

    def start(self) -> None:
        """Listen; again on the same port after `stop`."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        self._server.socket = self._context.wrap_socket(self._server.socket, server_side=True)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def rotate(self, kid: str) -> None:
        """Sign with a new key; the old one is published no more."""
        self.keys = [signing_key(self.algorithm, kid)]

    def token(
        self,
        subject: str = "app",
        *,
        key: Any = None,
        header: dict[str, Any] | None = None,
        without: tuple[str, ...] = (),
        **claims: Any,
    ) -> str:
        """A token as it would issue it; `claims` replace or add, `without` leaves out."""
        now = int(time.time())
        whole = {
            "iss": self.url,
            "aud": [AUDIENCE],
            "sub": subject,
            "iat": now,
            "exp": now + 600,
            **claims,
        }
        signer = key or self.keys[0]
        named = {"alg": self.algorithm, "typ": "JWT", "kid": self.keys[0].kid, **(header or {})}
        payload = {name: value for name, value in whole.items() if name not in without}
        algorithm = named["alg"]
        token = jwt.encode(named, payload, signer, algorithms=[algorithm])
        plant_token(token)
        return token

    def service_account(self, namespace: str, name: str, **claims: Any) -> str:
        """As Kubernetes issues it to a pod."""
        return self.token(
            f"system:serviceaccount:{namespace}:{name}",
            **{
                "kubernetes.io": {
                    "namespace": namespace,
                    "serviceaccount": {"name": name, "uid": "0001"},
                    "pod": {"name": f"{name}-0", "uid": "0002"},
                },
                **claims,
            },
        )

    def jwks(self) -> dict[str, Any]:
        return {"keys": [key.as_dict(private=False) for key in self.keys]}

    def answer(self, path: str) -> bytes | None:
        self.requests[path] = self.requests.get(path, 0) + 1
        if self.garbage is not None:
            return self.garbage
        documents: dict[str, Any] = {
            "/.well-known/openid-configuration": {
                "issuer": self.url,
                "jwks_uri": f"{self.url}/keys",
            },
            "/keys": self.jwks(),
        }
        return json.dumps(documents[path]).encode() if path in documents else None


@contextmanager
def oidc_issuer(folder: Path, algorithm: str = "ES256") -> Iterator[OidcIssuer]:
    issuer = OidcIssuer(folder, algorithm)
    try:
        yield issuer
    finally:
        issuer.stop()


def _handler(issuer: OidcIssuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = issuer.answer(self.path)
            self.send_response(200 if answer is not None else 404)
            self.end_headers()
            self.wfile.write(answer or b"")

        def log_message(self, *_: object) -> None:
            return

    return Handler
