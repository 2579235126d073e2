"""What a host says of a file before its first byte."""

from __future__ import annotations

import contextlib
import re
from email.message import Message
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from comfypod.download import address, connection
from comfypod.download.connection import Client
from comfypod.download.order import Facts
from comfypod.download.refusal import RefusedError
from comfypod.errors import IntegrityError

if TYPE_CHECKING:
    from comfypod.download.connection import Answer
    from comfypod.download.order import Order, Terms

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_NUMBER = 20
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
# A host that refuses these to HEAD refuses them to GET as well.
_FINAL = frozenset({401, 404, 410})


def probe(url: str, terms: Terms) -> Facts:
    """Ask what a file is, through redirects; by its first byte where the host will not say so.

    Raises:
        SourceError: not reachable or refused; what a refusal says to do is in its hint.
    """
    client = Client(terms.tokens)
    with contextlib.closing(client), client.within(connection.QUESTION_SECONDS, url):
        try:
            facts = facts_of(client.ask(url, "HEAD"))
        except RefusedError as error:
            if error.status in _FINAL:
                raise
            facts = Facts(url)
        return facts if facts.size >= 0 else facts_of(client.ask(url, headers={"Range": "bytes=0-0"}))


def facts_of(answer: Answer) -> Facts:
    """Return what an answer says of the file."""
    headers, seen = answer.headers, answer.seen
    packed = headers.get("content-encoding", "identity") != "identity"
    size = -1 if packed else _size(answer)
    if size < 0:
        size = _number(seen.get("x-linked-size", ""))
    digest = seen.get("x-linked-etag", "").strip('"')
    ranges = not packed and (answer.status == 206 or headers.get("accept-ranges") == "bytes")
    return Facts(
        answer.url, size, digest if _SHA256.fullmatch(digest) else "", version_of(answer), ranges, name_of(answer)
    )


def _size(answer: Answer) -> int:
    if answer.status == 206:
        return part_of(answer)[1]
    length = answer.headers.get("content-length", "")
    return _number(length)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < _LONGEST_NUMBER else -1


def part_of(answer: Answer) -> tuple[int, int]:
    """Return where the bytes of an answer begin, and the size of the whole; -1 for what it does not say."""
    found = _RANGE.fullmatch(answer.headers.get("content-range", "").strip())
    start, _, total = found.groups() if found else (None, None, "*")
    return _number(start or ""), _number(total)


def version_of(answer: Answer) -> str:
    """Return what tells one version of a file from another, and may stand in `If-Range`: no weak tag."""
    tag = answer.headers.get("etag", "")
    return tag if tag.startswith('"') else answer.headers.get("last-modified", "")


def name_of(answer: Answer) -> str:
    """Return what the host calls the file, for people; never where it is put."""
    message = Message()
    message["Content-Disposition"] = answer.headers.get("content-disposition", "")
    said = message.get_filename() or unquote(urlsplit(answer.url).path)
    return "".join(letter for letter in re.split(r"[/\\]", said)[-1] if letter.isprintable())


def agree(order: Order, found: Facts) -> None:
    """Compare what a host says of a file with what was ordered.

    Raises:
        IntegrityError: the host has another file.
    """
    compared = ("bytes", order.size or -1, found.size), ("sha256", order.sha256, found.sha256)
    for what, ours, theirs in compared:
        if ours not in ("", -1) and theirs not in ("", -1) and ours != theirs:
            said = f"{address.shown(order.url)} is another file: {what} {theirs}, and not {ours}"
            raise IntegrityError(said, "the file was replaced at its host, or the address is wrong; it was not fetched")
