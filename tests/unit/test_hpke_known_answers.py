"""The library's HPKE against published known answers, where ours uses it: KEM and key schedule.

Its interface has no associated data, which the published encryptions have. So each is checked in
two steps: the published key and nonce give the published ciphertext; and what they encrypt without
associated data, the library opens from `enc` and the private key alone. It does only if it derives
the same key and nonce.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite

from tests.support import key_transport_opener as opener

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "hpke.json").read_text())["vectors"]
KEMS = {0x0020: (KEM.X25519, 2), 0x647A: (KEM.MLKEM768_X25519, 1)}
"""KEM by its number, and our suite that uses it."""
AEADS: dict[int, tuple[AEAD, type[AESGCM] | type[ChaCha20Poly1305]]] = {
    1: (AEAD.AES_128_GCM, AESGCM),
    3: (AEAD.CHACHA20_POLY1305, ChaCha20Poly1305),
}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_library_gives_the_published_answers(vector: dict[str, Any]) -> None:
    kem, number = KEMS[vector["kem_id"]]
    aead, cipher = AEADS[vector["aead_id"]]
    assert vector["kdf_id"] == 1
    pair = opener.PrivateKey.from_seed(number, bytes.fromhex(vector["skRm"]))
    assert pair.public_bytes.hex() == vector["pkRm"]
    private = MLKEM768X25519PrivateKey(pair.mlkem, pair.x25519) if pair.mlkem else pair.x25519
    published, nonce = cipher(bytes.fromhex(vector["key"])), bytes.fromhex(vector["base_nonce"])
    first = {name: bytes.fromhex(value) for name, value in vector["encryption"].items()}
    assert published.encrypt(nonce, first["pt"], first["aad"]) == first["ct"]

    suite = Suite(kem, KDF.HKDF_SHA256, aead)
    enc, info = bytes.fromhex(vector["enc"]), bytes.fromhex(vector["info"])
    ciphertext = enc + published.encrypt(nonce, first["pt"], b"")
    assert suite.decrypt(ciphertext, private, info=info) == first["pt"]
    with pytest.raises(InvalidTag):
        suite.decrypt(ciphertext, private, info=info + b"\0")
