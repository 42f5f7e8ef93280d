"""The metadata of a setting, and the types of values that settings take.

`setting` makes every field of `Settings`, with one `About` and pydantic's bounds. README, examples, `config
show` and error messages are made from these two. Knows no key by name.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic.fields import FieldInfo

from config.ring_hosts import parse_worker_hosts

_PATH_TYPES = (Path, Path | None)


@dataclass(frozen=True, slots=True)
class About:
    """The description of a setting for people.

    `is_live`: a running service takes a new value; otherwise it needs a restart. `is_secret`: never shown.
    `bounds`: the least and the largest number. `allowed`: only where the type and the bounds do not describe
    the allowed values.
    """

    group: str
    description: str
    bounds: tuple[float | None, float | None] = (None, None)
    unit: str = ""
    is_live: bool = False
    is_secret: bool = False
    allowed: str = ""


def between(low: float, high: float) -> Any:
    """Bound a number in a union, both ends included."""
    return Field(ge=low, le=high)


def setting(group: str, default: object, description: str, **more: Any) -> Any:
    """Make the field of a setting; `more` has the other members of its `About`."""
    about: Any = About(group, description, **more)
    low, high = about.bounds
    return Field(default, ge=low, le=high, json_schema_extra={"about": about})


def is_setting(field: FieldInfo) -> bool:
    """Whether a field of the class is a setting."""
    return field.json_schema_extra is not None


def about(field: FieldInfo) -> About:
    """Return the metadata of a setting's field."""
    extra: Any = field.json_schema_extra
    found: About = extra["about"]
    return found


def allowed_values(field: FieldInfo) -> str:
    """Describe a setting's allowed values."""
    said = about(field).allowed
    if said:
        return said
    if get_origin(field.annotation) is Literal:
        *others, last = get_args(field.annotation)
        return f"{', '.join(others)} or {last}"
    if field.annotation in _PATH_TYPES:
        return "a path" if field.annotation is Path else "a path, or empty for none"
    kind = "a whole number" if field.annotation is int else "a number"
    low, high = map(format_value, about(field).bounds)
    return f"{kind} from {low} to {high}"


def format_value(value: object) -> str:
    """Write a value in the form of `.env`."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def json_value(value: object) -> str | int | float | None:
    """Write a value in the form of `config.json`."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return str(value)


def _absolute(path: Path | None, info: ValidationInfo) -> Path | None:
    if path is None:
        return None
    root: Path = info.data["root"]
    try:
        return root / path.expanduser()
    except RuntimeError as error:
        raise ValueError("this home folder is unknown") from error


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("it is empty")
    return value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


HOST_NAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?"
)


def _listening_host(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        looks_like_an_address = re.fullmatch(r"[0-9.]+", value) is not None
        if looks_like_an_address or HOST_NAME.fullmatch(value) is None:
            raise ValueError("it is neither an address nor a host name") from None
        return value


def _ring_address(value: str) -> str:
    address = ipaddress.IPv4Address(value)
    if address.is_unspecified or address.is_multicast:
        raise ValueError("other ranks cannot connect to it")
    return str(address)


def _allowed_hosts(value: str) -> str:
    names = split_list(value)
    for name in names:
        if name != "*" and HOST_NAME.fullmatch(re.sub(r"^\*?\.", "", name)) is None:
            raise ValueError(f"{name!r} is not a host name; omit http://, port and path")
    return ",".join(names).lower()


def _cors_origins(value: str) -> str:
    for origin in split_list(value):
        if origin != "*" and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#,@]+", origin) is None:
            raise ValueError(f"{origin!r} is not an origin")
    return _names_or_star(value)


def _names_or_star(value: str) -> str:
    names = split_list(value)
    if "*" in names and len(names) > 1:
        raise ValueError("* stands alone")
    return ",".join(names)


def _layer_split(value: str) -> str:
    if value == "auto":
        return value
    parse_layer_counts(value)
    return value.replace(" ", "")


def _worker_hosts(value: str) -> str:
    parse_worker_hosts(value)
    return ",".join(split_list(value))


def _worker_dir(value: str) -> str:
    if re.fullmatch(r"(~/|/)[^\s'\"\\$`*?]*[^\s'\"\\$`*?/]", value) is None or ".." in value.split("/"):
        raise ValueError("it is neither an absolute path nor a path below ~/ without blanks and quotes")
    return value


def _worker_python(value: str) -> str:
    if re.fullmatch(r"((~/|/)?[A-Za-z0-9_.][A-Za-z0-9_./+-]*)?", value) is None:
        raise ValueError("it is not the name of a program")
    return value


def split_list(value: str) -> tuple[str, ...]:
    """Split a comma list, and drop empty entries."""
    return tuple(word.strip() for word in value.split(",") if word.strip())


def parse_layer_counts(value: str) -> tuple[int, ...]:
    """Read `15,15`: the number of layers of rank 0, rank 1, and so on."""
    words = [word.strip() for word in value.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,4}", word) and int(word) > 0 for word in words):
        raise ValueError("it is not a list of whole numbers above zero")
    return tuple(int(word) for word in words)


AnyPath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_absolute)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_none), AfterValidator(_absolute)]
ListeningHost = Annotated[str, AfterValidator(_listening_host)]
RingAddress = Annotated[str, AfterValidator(_ring_address)]
AllowedHosts = Annotated[str, AfterValidator(_allowed_hosts)]
CorsOrigins = Annotated[str, AfterValidator(_cors_origins)]
ModelAliases = Annotated[str, AfterValidator(_names_or_star)]
LayerSplit = Annotated[str, BeforeValidator(_lower), AfterValidator(_layer_split)]
WorkerHosts = Annotated[str, AfterValidator(_worker_hosts)]
WorkerDir = Annotated[str, AfterValidator(_worker_dir)]
WorkerPython = Annotated[str, AfterValidator(_worker_python)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)]
Auto = Annotated[Literal["auto"], BeforeValidator(_lower)]
