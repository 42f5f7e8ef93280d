"""Lists in OpenAI's form, a page at a time: `limit` entries behind the one whose id is `after`.

Pure: knows dictionaries with an id.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import Request as HttpRequest

from frontdoor.http.errors import InvalidRequest


def make_page(
    http: HttpRequest, entries: Sequence[dict[str, Any]], *, default: int, most: int
) -> dict[str, Any]:
    """Return a page of entries, which come newest first.

    Args:
        default, most: of `limit`.

    Raises:
        InvalidRequest: a query parameter is wrong.
    """
    asked = http.query_params
    limit, after = asked.get("limit", str(default)), asked.get("after")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= most):
        raise InvalidRequest(f"'limit' must be a whole number from 1 to {most}", param="limit")
    if asked.get("order", "desc") not in ("asc", "desc"):
        raise InvalidRequest("'order' must be asc or desc", param="order")
    entries = entries[::-1] if asked.get("order") == "asc" else entries
    if after:
        places = [place for place, entry in enumerate(entries) if entry["id"] == after]
        if not places:
            raise InvalidRequest("'after' must be the id of an entry of the list", param="after")
        entries = entries[places[0] + 1 :]
    page = entries[: int(limit)]
    return {
        "object": "list",
        "data": list(page),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(entries) > len(page),
    }
