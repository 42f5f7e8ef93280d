"""Sends a file, or the range of it that a client asks for, with errors in the API's form."""

from starlette import responses

from frontdoor.http.errors import RangeNotSatisfiable


class SentFile(responses.FileResponse):
    """Starlette's answer, without its plain-text errors (starlette 1.10 responses.py)."""

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except responses.MalformedRangeHeader:
            return []  # the whole file: a server may ignore the header (RFC 9110, 14.2)
        except responses.RangeNotSatisfiable:
            raise RangeNotSatisfiable(f"the file has no such range: it has {file_size} bytes") from None
