"""GET /: name, version and endpoints as JSON, or the page for a browser; the page is also at /ui.

The page's files are in frontdoor/page. The policy header forbids them to load anything from other sites.
"""

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from frontdoor import NAME, VERSION
from frontdoor.http.errors import NotFound
from frontdoor.http.sent_file import SentFile
from frontdoor.routes.openapi import endpoints
from frontdoor.state import front_door

PAGE_DIR = Path(__file__).resolve().parent.parent / "page"
MEDIA_TYPES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}

router = APIRouter()


@router.get("/")
async def root(http: HttpRequest) -> Response:
    """Introduce the service."""
    if "text/html" in http.headers.get("accept", ""):
        return _file("index.html")
    return JSONResponse(_introduction(http), headers={"Vary": "Accept"})


@router.get("/ui")
async def page() -> Response:
    """Show the page."""
    return _file("index.html")


@router.get("/ui/{name}")
async def page_file(name: str) -> Response:
    """Send one of the page's files."""
    return _file(name)


def _file(name: str) -> Response:
    media_type = MEDIA_TYPES.get(name)
    if media_type is None:
        raise NotFound("no such path; GET / lists the endpoints")
    return SentFile(PAGE_DIR / name, media_type=media_type, headers=HEADERS)


def _introduction(http: HttpRequest) -> dict[str, Any]:
    return {
        "name": NAME,
        "version": VERSION,
        "model": front_door(http).model_name,
        "endpoints": list(endpoints(http.app.openapi())),
    }
