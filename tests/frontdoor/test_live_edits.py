"""Live settings reach a running front door: what begins afterwards sees all of the new values."""

from pathlib import Path

import pytest

from frontdoor.app import make_app
from frontdoor.supervised import LiveSettings
from tests.services.frontdoor_service import make_client, make_settings, serving_app


def test_new_values_hold_for_the_next_request(tmp_path: Path) -> None:
    """Limits hold at once and stand in /health; a value that is not allowed changes nothing."""
    settings = make_settings(tmp_path)
    app = make_app(settings)
    live = LiveSettings(app)
    with serving_app(app, settings) as url, make_client(url) as http:
        body = {"prompt": "a" * 100, "max_tokens": 1, "background": True}
        assert http.post("/generate", json=body).status_code == 202
        live.on_settings({"MAX_PROMPT_LEN_BYTES": 50, "MAX_QUEUE_DEPTH": 1})
        refused = http.post("/generate", json=body)
        assert refused.status_code == 400
        assert "MAX_PROMPT_LEN_BYTES=50" in refused.text
        assert http.post("/generate", json={**body, "prompt": "a"}).status_code == 429
        live.on_settings({"MAX_PROMPT_LEN_BYTES": 0})
        assert http.get("/health").json()["settings"]["MAX_PROMPT_LEN_BYTES"] == 50


@pytest.mark.parametrize("values", [{}, {"NO_SUCH_KEY": 1}])
def test_values_of_another_release_change_nothing(tmp_path: Path, values: dict[str, object]) -> None:
    """An unknown key is logged and the settings stay."""
    settings = make_settings(tmp_path)
    app = make_app(settings)
    LiveSettings(app).on_settings(values)
    assert app.state.front_door.settings.public() == settings.public()
