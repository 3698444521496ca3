"""Content codings of HTTP bodies: gzip, deflate, zstd, lz4, and br where its library is installed.

Bodies pass through piece by piece; nothing here holds a whole body on the way in. A body that is not what it says it
is raises CodingError with ClickHouse's own code for that.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import lz4.frame
from attrs import frozen


class CodingError(Exception):
    """A body that cannot be decoded, with the code ClickHouse gives for it."""

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(message)
        self.code, self.name = code, name


class Decoder(Protocol):
    """Takes a body in pieces and gives it back decoded."""

    def decode(self, piece: bytes) -> bytes:
        """The decoded bytes that ``piece`` completes."""

    def finish(self) -> None:
        """Raise CodingError unless the body ended where its coding says."""


@frozen(kw_only=True)
class _Coding:
    """How one coding is undone and done, and how its failures are called in ClickHouse."""

    decompressor: Callable[[], Any]
    compress: Callable[[bytes], bytes]
    errors: tuple[type[Exception], ...]
    code: int
    code_name: str


class _Identity:
    def decode(self, piece: bytes) -> bytes:
        return piece

    def finish(self) -> None:
        """Any end is a good end."""


class _Members:
    """Decodes one compressed member after another, as gzip, zstd and lz4 allow."""

    def __init__(self, coding: _Coding) -> None:
        self._coding = coding
        self._decompressor: Any = None

    def decode(self, piece: bytes) -> bytes:
        decoded = []
        try:
            while piece:
                if self._decompressor is None:
                    self._decompressor = self._coding.decompressor()
                decoded.append(self._decompressor.decompress(piece))
                piece = b""
                if self._decompressor.eof:
                    piece, self._decompressor = self._decompressor.unused_data or b"", None
        except self._coding.errors as error:
            raise self._broken(str(error)) from error
        return b"".join(decoded)

    def finish(self) -> None:
        if self._decompressor is not None:
            raise self._broken("the compressed body ends early")

    def _broken(self, reason: str) -> CodingError:
        return CodingError(self._coding.code, self._coding.code_name, f"Cannot decompress the request body: {reason}")


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(level=1, wbits=31)
    return packer.compress(body) + packer.flush()


def _codings() -> dict[str, _Coding]:
    known = {
        "gzip": _Coding(
            decompressor=lambda: zlib.decompressobj(wbits=47),
            compress=_gzip,
            errors=(zlib.error,),
            code=354,
            code_name="ZLIB_INFLATE_FAILED",
        ),
        "deflate": _Coding(
            decompressor=zlib.decompressobj,
            compress=lambda body: zlib.compress(body, 1),
            errors=(zlib.error,),
            code=354,
            code_name="ZLIB_INFLATE_FAILED",
        ),
        "lz4": _Coding(
            decompressor=lz4.frame.LZ4FrameDecompressor,
            compress=lz4.frame.compress,
            errors=(RuntimeError, EOFError),
            code=614,
            code_name="LZ4_DECODER_FAILED",
        ),
    }
    zstd = _first_module("compression.zstd", "backports.zstd")
    if zstd is not None:
        known["zstd"] = _Coding(
            decompressor=zstd.ZstdDecompressor,
            compress=lambda body: zstd.compress(body, 1),
            errors=(zstd.ZstdError,),
            code=561,
            code_name="ZSTD_DECODER_FAILED",
        )
    return known


def _first_module(*names: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


_CODINGS = _codings()


def decoder(content_encoding: str) -> Decoder:
    """The decoder for a request's Content-Encoding."""
    name = content_encoding.strip().lower()
    if name in ("", "identity"):
        return _Identity()
    if name not in _CODINGS:
        raise CodingError(89, "UNKNOWN_COMPRESSION_METHOD", f"Unknown content encoding '{name}' of the request body")
    return _Members(_CODINGS[name])


def negotiate(accept_encoding: str) -> str | None:
    """The coding for a response, from a request's Accept-Encoding."""
    accepted = {part.split(";")[0].strip().lower() for part in accept_encoding.split(",")}
    return next((name for name in ("zstd", "lz4", "gzip", "deflate") if name in accepted & _CODINGS.keys()), None)


def encode(body: bytes, coding: str) -> bytes:
    """``body`` in one of the codings that ``negotiate`` names."""
    return _CODINGS[coding].compress(body)
