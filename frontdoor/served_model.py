"""The served model, as clients may name it."""

from frontdoor.http.errors import ModelNotFound
from frontdoor.state import FrontDoor


def check_model(front: FrontDoor, name: str | None) -> None:
    """Accept the short and the full name of the model, its aliases, and no name at all.

    Raises:
        ModelNotFound: another name.
    """
    served, aliases = front.model_name, front.settings.model_alias_list
    if name is not None and name not in (served, front.settings.model_repo, *aliases) and "*" not in aliases:
        raise ModelNotFound(
            f"this server serves the model {served!r}; MODEL_ALIASES in .env adds other names", param="model"
        )
