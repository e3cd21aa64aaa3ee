"""Which deployment a client belongs to: the same one for every request, in every router, as long as the share stays.

point = cohort(headers, body, ["header", "user"])    # in [0, 1); None if nothing identifies the client
to_canary = point < share                             # a growing share only adds clients to the canary
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

HEADER = "x-nld-cohort"
PINNED = {"canary": 0.0, "stable": 1.0}  # values of the header that name the deployment itself


def cohort(headers: Mapping[str, str], body: bytes, cohort_by: Sequence[str]) -> float | None:
    """The client's point in [0, 1): below the share it belongs to the canary. 1 never does."""
    for kind in cohort_by:
        key = READERS[kind](headers, body)
        if kind == "header" and key in PINNED:
            return PINNED[key]
        if key:
            return point(kind, key)
    return None


def point(kind: str, key: str) -> float:
    """A hash of the key, evenly spread over [0, 1)."""
    digest = hashlib.sha256(f"{kind}\0{key}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def header(headers: Mapping[str, str], body: bytes) -> str:
    return headers.get(HEADER, "").strip()


def user(headers: Mapping[str, str], body: bytes) -> str:
    """The field `user` of OpenAI's requests."""
    if b'"user"' not in body:  # in most requests; as a role, it is in many
        return ""
    try:
        value = json.loads(body)["user"]
    except (ValueError, KeyError, TypeError):
        return ""
    return value if isinstance(value, str) else ""


def api_key(headers: Mapping[str, str], body: bytes) -> str:
    return headers.get("authorization", "") or headers.get("x-api-key", "")


READERS = {"header": header, "user": user, "api_key": api_key}


class Share:
    """Meets a share exactly: of any N consecutive requests the canary gets share * N, give or take one."""

    def __init__(self) -> None:
        self._share = 0.0
        self._credit = 0.0

    def take(self, share: float) -> bool:
        """Whether the next request goes to the canary, at this share."""
        if share != self._share:
            self._share, self._credit = share, 0.0
        self._credit += share
        if self._credit < 1 - 1e-9:
            return False
        self._credit -= 1
        return True
