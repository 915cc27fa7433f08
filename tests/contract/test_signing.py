"""Presigned links of Google Cloud Storage and Azure, without either: each provider's rule for what
is signed, written here from its documentation and held to recorded answers, and our links to that.
S3's are held to a real server (test_artifact_store.py).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from modelkms_api.object_store import BucketSettings, object_key

from kms_service.adapters.bucket_storage import BucketArtifactStore

DAY = timedelta(days=1)
GOOGLE_ACCOUNT = "test-iam-credentials@dummy-project-id.iam.gserviceaccount.com"

# Google's conformance data for V4 signing (googleapis/conformance-tests, v4_signatures.json):
# object, time, seconds, SHA-256 of the canonical request.
GOOGLE_ANSWERS = [
    (
        "test-object",
        "20190201T090000Z",
        10,
        "00e2fb794ea93d7adb703edaebdd509821fcc7d4f1a79ac5c8d2b394df109320",
    ),
    (
        "test-object",
        "20190301T090000Z",
        20,
        "779f19fdb6fd381390e2d5af04947cf21750277ee3c20e0c97b7e46a1dff8907",
    ),
]
# A link that obstore made for account "acct" with the 64-byte key "kkk…".
AZURE_ANSWER = (
    "https://acct.blob.core.windows.net/cont/pre/objects/ab/abababababababababababababababab"
    "?sr=b&st=2026-11-25T03%3A30%3A43Z&sp=r&sv=2023-11-03&se=2026-11-26T04%3A30%3A43Z"
    "&sig=H88TDCVByid4Yk2I4a4syGoXurJ3WI4dfTiHiEN%2BWg4%3D"
)


# --- Google --------------------------------------------------------------------------------------


def google_string_to_sign(url: str) -> str:
    """docs: "V4 signing process": all of the link but its signature."""
    parts = urlsplit(url)
    query = [(key, value) for key, value in parse_qsl(parts.query) if key != "X-Goog-Signature"]
    canonical_query = "&".join(
        f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in sorted(query)
    )
    canonical = (
        f"GET\n{parts.path}\n{canonical_query}\nhost:{parts.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
    )
    fields = dict(query)
    scope = fields["X-Goog-Credential"].split("/", 1)[1]
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return f"GOOG4-RSA-SHA256\n{fields['X-Goog-Date']}\n{scope}\n{digest}"


@pytest.mark.parametrize(("name", "time", "seconds", "digest"), GOOGLE_ANSWERS)
def test_the_rule_written_here_is_googles(name: str, time: str, seconds: int, digest: str) -> None:
    credential = quote(f"{GOOGLE_ACCOUNT}/{time[:8]}/auto/storage/goog4_request", safe="")
    url = (
        f"https://storage.googleapis.com/test-bucket/{name}?X-Goog-Algorithm=GOOG4-RSA-SHA256"
        f"&X-Goog-Credential={credential}&X-Goog-Date={time}&X-Goog-Expires={seconds}"
        "&X-Goog-SignedHeaders=host"
    )
    assert google_string_to_sign(url) == (
        f"GOOG4-RSA-SHA256\n{time}\n{time[:8]}/auto/storage/goog4_request\n{digest}"
    )


def test_google_links_are_signed_by_that_rule(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = tmp_path / "account.json"
    account.write_text(
        json.dumps(
            {
                "type": "service_account",
                "client_email": GOOGLE_ACCOUNT,
                "private_key": pem.decode(),
                "private_key_id": "one",
            }
        )
    )
    artifact_id = secrets.token_hex(16)
    settings = BucketSettings("gcs", "models", prefix="pre", credentials_file=account)
    url = BucketArtifactStore(settings).link(artifact_id, DAY)
    assert url is not None
    parts, fields = urlsplit(url), dict(parse_qsl(urlsplit(url).query))
    assert (parts.scheme, parts.netloc) == ("https", "storage.googleapis.com")
    assert parts.path == f"/models/pre/{object_key(artifact_id)}"
    assert fields["X-Goog-Expires"] == "90000"
    assert fields["X-Goog-Credential"].startswith(GOOGLE_ACCOUNT)
    signed = datetime.strptime(fields["X-Goog-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - signed) < timedelta(minutes=5)
    key.public_key().verify(
        bytes.fromhex(fields["X-Goog-Signature"]),
        google_string_to_sign(url).encode(),
        padding.PKCS1v15(),
        hashes.SHA256(),
    )


# --- Azure ---------------------------------------------------------------------------------------


def azure_signature(url: str, account: str, key: bytes) -> str:
    """docs: "Create a service SAS", version 2020-12-06 and later: fields in a fixed order, those
    that are not given empty."""
    parts, fields = urlsplit(url), dict(parse_qsl(urlsplit(url).query))
    string = "\n".join(
        (
            fields["sp"],
            fields["st"],
            fields["se"],
            f"/blob/{account}{unquote(parts.path)}",
            *("", "", ""),  # identifier, addresses, protocol
            fields["sv"],
            fields["sr"],
            *("", ""),  # snapshot time, encryption scope
            *("", "", "", "", ""),  # headers of the answer
        )
    )
    return base64.b64encode(hmac.digest(key, string.encode(), "sha256")).decode()


def test_the_rule_written_here_gives_the_recorded_answer() -> None:
    fields = dict(parse_qsl(urlsplit(AZURE_ANSWER).query))
    assert azure_signature(AZURE_ANSWER, "acct", b"k" * 64) == fields["sig"]


def test_azure_links_are_signed_by_that_rule(tmp_path: Path) -> None:
    key = secrets.token_bytes(64)
    credentials = tmp_path / "credentials.json"
    credentials.write_text(json.dumps({"account_key": base64.b64encode(key).decode()}))
    artifact_id = secrets.token_hex(16)
    settings = BucketSettings(
        "azure", "models", prefix="pre", account="acct", credentials_file=credentials
    )
    url = BucketArtifactStore(settings).link(artifact_id, DAY)
    assert url is not None
    parts, fields = urlsplit(url), dict(parse_qsl(urlsplit(url).query))
    assert (parts.scheme, parts.netloc) == ("https", "acct.blob.core.windows.net")
    assert parts.path == f"/models/pre/{object_key(artifact_id)}"
    assert (fields["sp"], fields["sr"]) == ("r", "b")  # reading, of one blob
    begins, ends = (datetime.fromisoformat(fields[name]) for name in ("st", "se"))
    assert ends - begins == DAY + timedelta(hours=1)
    assert fields["sig"] == azure_signature(url, "acct", key)
