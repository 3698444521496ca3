"""Bodies come through their codings whole, however they are cut; broken ones do not."""

from __future__ import annotations

import gzip
import random

import pytest

from replicator.embedded.http_codings import CodingError, decoder, encode, negotiate

CODINGS = ["gzip", "deflate", "zstd", "lz4"]
BODY = bytes(random.Random(1).choices(range(64), k=200_000))


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("piece", [1, 17, 4096, 1 << 20])
def test_a_body_survives_any_cut(coding: str, piece: int) -> None:
    body = BODY if piece > 1 else BODY[:2000]
    packed = encode(body, coding)
    decode = decoder(coding)
    assert b"".join(decode.decode(packed[at : at + piece]) for at in range(0, len(packed), piece)) == body
    decode.finish()


@pytest.mark.parametrize("coding", ["gzip", "zstd", "lz4"])
def test_members_follow_one_another(coding: str) -> None:
    decode = decoder(coding)
    assert decode.decode(encode(b"a", coding) + encode(b"b", coding)) == b"ab"
    decode.finish()


@pytest.mark.parametrize("coding", CODINGS)
def test_a_short_or_false_body_is_an_error(coding: str) -> None:
    decode = decoder(coding)
    decode.decode(encode(BODY, coding)[:-5])
    with pytest.raises(CodingError, match="ends early"):
        decode.finish()
    with pytest.raises(CodingError, match="Cannot decompress"):
        decoder(coding).decode(b"neither this nor that")


def test_identity_and_unknown_codings() -> None:
    assert decoder("").decode(b"x") == decoder(" Identity").decode(b"x") == b"x"
    assert decoder("GZIP").decode(gzip.compress(b"x")) == b"x"
    with pytest.raises(CodingError, match="'br2'"):
        decoder("br2")


def test_a_response_coding_is_one_the_client_takes() -> None:
    assert negotiate("gzip;q=0.5, br") == "gzip"
    assert negotiate("lz4, zstd, br, gzip") == "zstd"
    assert negotiate("identity") is None
    assert negotiate("") is None
