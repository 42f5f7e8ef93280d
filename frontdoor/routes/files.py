"""/v1/files: uploads, lists, sends and deletes files, as the openai clients expect it.

Files are the inputs and outputs of batches. With API keys, only the key of a file finds it. An upload goes
to the disk piece by piece. Knows nothing of a file's content.
"""

import re
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from config import Settings
from frontdoor.encoding import in_worker
from frontdoor.http.errors import BodyTooLarge, InvalidRequest, NotFound
from frontdoor.http.multipart import Form, read_form
from frontdoor.http.paging import make_page
from frontdoor.http.scope import header
from frontdoor.http.sent_file import SentFile
from frontdoor.state import FrontDoor, front_door, owner_of
from spool.batches import StoredFile, Upload, make_record

PURPOSE = "batch"
MAX_FILENAME_CHARACTERS = 255
MIN_LIFE_SECONDS, MAX_LIFE_SECONDS = 3600, 30 * 86_400  # as OpenAI has it
FORM_BYTES = 64 * 1024  # a form's other parts
_UPLOAD = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": [PURPOSE]},
        "expires_after[anchor]": {"enum": ["created_at"]},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": MIN_LIFE_SECONDS,
            "maximum": MAX_LIFE_SECONDS,
        },
    },
}

router = APIRouter(prefix="/v1/files")


@router.post(
    "",
    openapi_extra={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD}}}
    },
)
async def upload_file(http: HttpRequest) -> dict[str, Any]:
    """Upload a file."""
    front, max_bytes = front_door(http), front_door(http).settings.max_file_mb * 2**20
    room = await in_worker(front, _check_room, front, http, max_bytes)
    upload: Upload = await in_worker(front, front.batches.files.begin)
    with upload:

        async def write(piece: bytes) -> None:
            if upload.num_bytes + len(piece) > room:
                raise _no_room(front.settings)
            await in_worker(front, upload.append, piece)

        form = await read_form(http, "file", write, max_bytes=max_bytes)
        record = make_record(*_read_fields(form), owner=owner_of(http), lives_seconds=read_life(form.fields))
        stored: StoredFile = await in_worker(front, upload.publish, record)
    return describe(stored, front.settings)


@router.get("")
async def list_files(http: HttpRequest) -> dict[str, Any]:
    """List the files, the newest first."""
    front, owner, purpose = front_door(http), owner_of(http), http.query_params.get("purpose")
    found = await in_worker(front, front.batches.files.list_all)
    seen = [
        describe(file, front.settings)
        for file in found
        if owner in ("", file.owner) and purpose in (None, file.purpose)
    ]
    return make_page(http, seen, default=10_000, most=10_000)


@router.get("/{file_id}")
async def get_file(http: HttpRequest, file_id: str) -> dict[str, Any]:
    """Describe a file."""
    front = front_door(http)
    return describe(find_file(front, file_id, owner_of(http)), front.settings)


@router.get("/{file_id}/content", response_class=SentFile)
async def get_content(http: HttpRequest, file_id: str) -> SentFile:
    """Send a file."""
    front = front_door(http)
    file = find_file(front, file_id, owner_of(http))
    return SentFile(
        front.batches.files.path(file.id), media_type="application/octet-stream", filename=file.filename
    )


@router.delete("/{file_id}")
async def delete_file(http: HttpRequest, file_id: str) -> dict[str, Any]:
    """Delete a file; a batch that reads it goes on."""
    front = front_door(http)
    file = find_file(front, file_id, owner_of(http))
    await in_worker(front, front.batches.files.delete, file.id)
    return {"id": file.id, "object": "file", "deleted": True}


def find_file(front: FrontDoor, id: str, owner: str, *, param: str | None = None) -> StoredFile:
    """Return a caller's file.

    Raises:
        NotFound: unknown, or of another key.
    """
    file = front.batches.files.find(id)
    if file is None or owner not in ("", file.owner):
        raise NotFound("there is no such file, or it was removed (FILE_RETENTION_DAYS)", param=param)
    return file


def describe(file: StoredFile, settings: Settings) -> dict[str, Any]:
    """Write a file as OpenAI does."""
    expires_unix = file.expires_unix
    if expires_unix is None and settings.file_retention_days:
        expires_unix = file.created_unix + settings.file_retention_days * 86_400
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": int(file.created_unix),
        "expires_at": None if expires_unix is None else int(expires_unix),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def read_life(fields: dict[str, str]) -> int | None:
    """Return after how many seconds a file expires; None where the form does not say.

    Raises:
        InvalidRequest: a wrong or an unknown field.
    """
    fields = {name: value for name, value in fields.items() if name != "purpose"}
    seconds, anchor = fields.pop("expires_after[seconds]", None), fields.pop("expires_after[anchor]", None)
    if fields:
        name = next(iter(fields))[:100]
        raise InvalidRequest(f"unknown field {name!r}", param=name)
    if seconds is None and anchor is None:
        return None
    if anchor != "created_at":
        raise InvalidRequest("'expires_after[anchor]' must be created_at", param="expires_after[anchor]")
    if seconds is None or not re.fullmatch("[0-9]{1,9}", seconds):
        raise wrong_life("expires_after[seconds]")
    return check_life(int(seconds), "expires_after[seconds]")


def check_life(seconds: int, param: str) -> int:
    """Return the seconds. Raises InvalidRequest."""
    if not MIN_LIFE_SECONDS <= seconds <= MAX_LIFE_SECONDS:
        raise wrong_life(param)
    return seconds


def wrong_life(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"{param!r} must be a whole number from {MIN_LIFE_SECONDS} to {MAX_LIFE_SECONDS}", param=param
    )


def _read_fields(form: Form) -> tuple[str, str]:
    """Return the file's name and purpose. Raises InvalidRequest."""
    if form.filename is None:
        raise InvalidRequest("'file' is required, with a file name", param="file")
    purpose = form.fields.get("purpose")
    if purpose != PURPOSE:
        raise InvalidRequest(f"'purpose' must be {PURPOSE}: files are for batches here", param="purpose")
    name = re.split(r"[/\\]", form.filename)[-1][:MAX_FILENAME_CHARACTERS]
    return "".join(character for character in name if character.isprintable()) or "file", purpose


def _check_room(front: FrontDoor, http: HttpRequest, max_bytes: int) -> int:
    """Return how many bytes all files may still have.

    Raises:
        BodyTooLarge: the declared length is over a limit.
    """
    room = front.settings.max_files_mb * 2**20 - front.batches.files.count_bytes()
    declared = header(http.scope, b"content-length") or ""
    num_bytes = int(declared[:20]) if declared.isdigit() else 0
    if num_bytes > max_bytes + FORM_BYTES:
        raise BodyTooLarge(f"the file is larger than MAX_FILE_MB={front.settings.max_file_mb}")
    if room <= 0 or num_bytes > room + FORM_BYTES:
        raise _no_room(front.settings)
    return room


def _no_room(settings: Settings) -> BodyTooLarge:
    return BodyTooLarge(
        f"all files together would have more than MAX_FILES_MB={settings.max_files_mb}: delete some first",
        code="storage_limit_exceeded",
    )
