"""Settings: where they come from, what they may be, and what is said when they are wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from config import Settings, SettingsError, load_settings, show
from config.checks import start_warnings

KEYS = Settings.all_keys()


def load(root: Path, environ: Mapping[str, str] | None = None, **overrides: str) -> Settings:
    return load_settings(overrides, root=root, environ=environ or {})


def refuse(root: Path, environ: Mapping[str, str] | None = None, **overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(root, environ, **overrides)
    return str(caught.value)


def write_dotenv(root: Path, text: str) -> None:
    (root / ".env").write_text(text, encoding="utf-8")


def write_json(root: Path, text: str) -> None:
    (root / "config.json").write_text(text, encoding="utf-8")


def test_without_any_source_the_defaults_of_the_first_release_hold(tmp_path: Path) -> None:
    """Keys of the first release keep their names and defaults."""
    settings = load(tmp_path)
    assert settings.model_repo == "mlx-community/DeepSeek-Coder-V2-Lite-Instruct-8bit"
    assert (settings.api_host, settings.api_port) == ("127.0.0.1", 8100)
    assert (settings.default_max_tokens, settings.max_sequence_length) == (512, 4096)
    assert (settings.kv_cache_max_size, settings.kv_cache_reserved_memory_mb) == (8192, 2048)
    assert (settings.request_timeout, settings.poll_interval) == (120.0, 0.1)
    assert (settings.log_level, settings.log_file, settings.worker_hosts) == ("INFO", None, "")
    assert str(settings.origin("API_PORT")) == "default"


def test_each_source_hides_the_one_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command line over environment over .env over config.json over default, each with its place."""
    write_json(tmp_path, '{\n  "API_PORT": 8001,\n\n  "LOCAL_RANKS": 2\n}')
    assert load(tmp_path).api_port == 8001
    assert str(load(tmp_path).origin("LOCAL_RANKS")) == "config.json:4"
    write_dotenv(tmp_path, "\n# comment\n\nAPI_PORT=8002\n")
    assert load(tmp_path).api_port == 8002
    assert str(load(tmp_path).origin("API_PORT")) == ".env:4"
    environ = {"API_PORT": "8003"}
    assert load(tmp_path, environ).api_port == 8003
    monkeypatch.setenv("API_PORT", "8005")
    assert load_settings(root=tmp_path).api_port == 8005
    assert str(load(tmp_path, environ).origin("API_PORT")) == "environment"
    assert load(tmp_path, environ, API_PORT="8004").api_port == 8004
    assert str(load(tmp_path, environ, API_PORT="8004").origin("API_PORT")) == "command line"


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    """A Settings object is frozen."""
    settings = load(tmp_path)
    with pytest.raises(ValidationError, match="frozen"):
        settings.api_port = 1


def test_a_wrong_value_is_named_with_key_value_file_line_and_what_is_allowed(tmp_path: Path) -> None:
    """The message can be acted on without opening the documentation."""
    write_dotenv(tmp_path, "LOG_LEVEL=INFO\n\n\nAPI_PORT=99999\n")
    assert refuse(tmp_path) == (
        ".env:4: API_PORT = '99999' is not allowed; allowed: a whole number from 1 to 65535"
    )


def test_all_wrong_values_of_all_sources_are_reported_at_once(tmp_path: Path) -> None:
    """One error names everything: bad values, unknown keys, bad lines and relations together."""
    write_json(tmp_path, '{"LOCAL_RANKS": 0,\n "API_PROT": 1}')
    write_dotenv(tmp_path, "SPOOL_DURABILITY=maybe\nPOLL_INTERVAL=2\nREQUEST_TIMEOUT=1\n")
    message = refuse(tmp_path, {"LOG_LEVEL": "loud"}, API_PORT="x")
    origins = {line.split(": ")[0] for line in message.splitlines()}
    assert origins == {"config.json:2", "config.json:1", "command line", "environment", ".env:1", ".env:2"}
    assert len(message.splitlines()) == 6
    for part in ("LOCAL_RANKS = '0'", "API_PROT", "power or process", "'loud'", "'x'", "POLL_INTERVAL = 2"):
        assert part in message


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("API_PROT=1", "API_PROT is not a setting; did you mean API_PORT?"),
        ("api_port=1", "api_port is not a setting; did you mean API_PORT?"),
        ("ROOT=/", "ROOT is not a setting"),
        ("HF_TOKEN=hf_private", "HF_TOKEN is not a setting; config/README.md lists the keys"),
    ],
)
def test_an_unknown_key_in_a_file_stops_with_a_suggestion(
    tmp_path: Path, written: str, expected: str
) -> None:
    """A misspelt key is never silently ignored, and its value is not repeated."""
    write_dotenv(tmp_path, f"# settings\n{written}\n")
    message = refuse(tmp_path)
    assert message.startswith(f".env:2: {expected}")
    assert "hf_private" not in message


def test_unknown_environment_variables_are_ignored_and_unknown_overrides_are_not(tmp_path: Path) -> None:
    """The environment belongs to everybody; the command line is ours."""
    assert load(tmp_path, {"API_PROT": "1", "PATH": "/bin"}).api_port == 8100
    assert refuse(tmp_path, API_PROT="1") == "command line: API_PROT is not a setting; did you mean API_PORT?"


def test_what_is_retired_is_warned_about_and_never_refused(tmp_path: Path) -> None:
    """A key, or one value of a key that is still there, in any source; a misspelt one is still refused."""
    write_dotenv(tmp_path, "\nSPARE_RANKS=on\nCPU_PRODUCTS=onednn\n")
    settings = load(tmp_path, {"SPARE_RANKS": "off"}, SPARE_RANKS="whatever", API_PORT="8004")
    assert (settings.cpu_products, settings.api_port) == ("auto", 8004)
    assert [warning.partition(" is retired")[0] for warning in start_warnings(settings)] == [
        ".env:2: SPARE_RANKS",
        ".env:3: CPU_PRODUCTS = onednn",
        "environment: SPARE_RANKS",
        "command line: SPARE_RANKS",
    ]
    (tmp_path / ".env").unlink()
    assert "SPARE_RANK is not a setting" in refuse(tmp_path, SPARE_RANK="on")
    assert "CPU_PRODUCTS = 'twodnn' is not allowed" in refuse(tmp_path, CPU_PRODUCTS="twodnn")


@pytest.mark.parametrize("number", ["nan", "NaN", "inf", "-inf", "-1", "1e999", "", "ten"])
@pytest.mark.parametrize("key", ["REQUEST_TIMEOUT", "POLL_INTERVAL", "API_PORT", "DISCONNECT_GRACE_SECONDS"])
def test_numbers_must_be_finite_and_within_bounds(tmp_path: Path, key: str, number: str) -> None:
    """No NaN, infinity, negative or empty number passes."""
    assert f"{key} = {number!r} is not allowed" in refuse(tmp_path, {key: number})


WRONG_VALUES = {
    "API_PORT": ("0", "65536", "80.5"),
    "API_HOST": ("", "http://localhost", "127.0.0.1:8100", "300.1.1.1"),
    "RING_ADDRESS": ("0.0.0.0", "::1"),
    "MICROBATCHES": ("0", "65", "some"),
    "BLAS_THREADS": ("0",),
    "CPU_BLAS": ("fast",),
    "LOG_FORMAT": ("xml",),
    "STATE_DIR": ("",),
    "MODEL_REPO": ("", "builtin:gpt-5", "three/part/name", "a" * 5000),
    "CORS_ORIGINS": ("example.org", "*,https://example.org"),
    "ALLOWED_HOSTS": ("http://a.org", "a.org:8100", "*a.org", "a.*", "*.", ".", "a b", "::1"),
    "LAYER_SPLIT": ("15,", "0,30", "half"),
    "LOG_FILE": ("a\0b",),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG_VALUES.items() for value in values]
)
def test_values_outside_of_what_is_allowed_are_refused(tmp_path: Path, key: str, value: str) -> None:
    """Each refusal says what would have been allowed."""
    message = refuse(tmp_path, {key: value})
    assert message.startswith(f"environment: {key} = ")
    assert "; allowed: " in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value", "effective"),
    [
        ("LOG_LEVEL", "debug", "DEBUG"),
        ("MICROBATCHES", "4", 4),
        ("MICROBATCHES", "AUTO", "auto"),
        ("BLAS_THREADS", "2", 2),
        ("API_HOST", "::", "::"),
        ("API_HOST", "studio-1.local", "studio-1.local"),
        ("API_HOST", "192.168.5.1", "192.168.5.1"),
        ("CORS_ORIGINS", " https://a.org , http://localhost:3000", "https://a.org,http://localhost:3000"),
        ("CORS_ORIGINS", "*", "*"),
        ("MODEL_REPO", "builtin:smollm2-135m", "builtin:smollm2-135m"),
        ("MODEL_REPO", "/models/a model", "/models/a model"),
        ("MODEL_REPO", "gpt2", "gpt2"),
        ("REQUEST_TIMEOUT", " 2.5 ", 2.5),
        ("API_KEYS_FILE", "", None),
        ("KV_CACHE_MAX_SIZE", "0", 0),
    ],
)
def test_allowed_values_are_taken(tmp_path: Path, key: str, value: str, effective: object) -> None:
    """Values are normalised as their documentation says."""
    assert load(tmp_path, {key: value}).value(key) == effective


def test_a_small_context_and_a_small_body_need_no_other_setting(tmp_path: Path) -> None:
    """A default that is larger is cut to the room when it is used."""
    settings = load(tmp_path, MAX_SEQUENCE_LENGTH="2", MAX_BODY_BYTES="1024")
    assert (settings.default_max_tokens, settings.max_prompt_len_bytes) == (512, 4096)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"FILE_DESCRIPTOR_SOFT_LIMIT": "8192"}, "FILE_DESCRIPTOR_HARD_LIMIT = 4096 (from default)"),
        ({"MAX_BODY_BYTES": "2000000", "MAX_QUEUE_MB": "1"}, "must fit into the MiB of MAX_QUEUE_MB = 1"),
        (
            {"POLL_INTERVAL": "2", "REQUEST_TIMEOUT": "1"},
            "POLL_INTERVAL = 2 must be less than REQUEST_TIMEOUT",
        ),
        ({"RESULT_RETENTION_HOURS": "0.5", "REQUEST_TIMEOUT": "3600"}, "RESULT_RETENTION_HOURS = 0.5"),
        ({"LAYER_SPLIT": "10,10,10", "LOCAL_RANKS": "2"}, "as many as LOCAL_RANKS = 2"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, overrides: dict[str, str], expected: str
) -> None:
    """Both settings and both places are named."""
    assert expected in refuse(tmp_path, None, **overrides)


def test_a_wrong_value_raises_no_second_complaint_about_its_relations(tmp_path: Path) -> None:
    """A relation is only judged where both of its settings are well formed, and every file can be read."""
    more_than_the_default_queue = str(1 << 30)
    message = refuse(tmp_path, MAX_BODY_BYTES=more_than_the_default_queue, MAX_QUEUE_MB="-5")
    assert re.fullmatch("command line: MAX_QUEUE_MB = .*", message)
    write_json(tmp_path, '{"MAX_QUEUE_MB": 2000,')
    message = refuse(tmp_path, MAX_BODY_BYTES=more_than_the_default_queue)
    assert re.fullmatch("config.json:1: this is not valid JSON.*", message)


def test_a_wrong_host_is_named_with_its_line(tmp_path: Path) -> None:
    """WORKER_HOSTS is read when settings are loaded, entry by entry."""
    write_dotenv(tmp_path, "WORKER_HOSTS=mac2:2, -oProxyCommand=x\n")
    with pytest.raises(
        SettingsError, match=r"^\.env:1: WORKER_HOSTS = .*'-oProxyCommand=x' is not \[user@\]"
    ):
        load(tmp_path)
    write_dotenv(tmp_path, "WORKER_HOSTS=mac2:2, anna@mac3=192.168.5.3\n")
    assert load(tmp_path).worker_hosts == "mac2:2,anna@mac3=192.168.5.3"


def test_dotenv_is_parsed_and_never_run(tmp_path: Path) -> None:
    """Quotes, comments, export and blank lines are understood; commands are text; variables are refused."""
    write_dotenv(
        tmp_path,
        "\ufeffexport API_PORT='8200'  # comment\r\n\r\nSTATE_DIR=\"a b\"\r\nLOG_FILE=$(touch pwned)\r\n",
    )
    settings = load(tmp_path)
    assert settings.api_port == 8200
    assert settings.state_dir == tmp_path / "a b"
    assert settings.log_file == tmp_path / "$(touch pwned)"
    assert not (tmp_path / "pwned").exists()
    write_dotenv(tmp_path, "STATE_DIR=${HOME}/x\n")
    assert refuse(tmp_path).startswith(".env:1: STATE_DIR refers to a variable")


@pytest.mark.parametrize("line", ["API_PORT", "API_PORT 8100", "API_PORT='8100"])
def test_a_line_of_dotenv_that_is_no_assignment_is_named(tmp_path: Path, line: str) -> None:
    """Broken lines stop the start with their number."""
    write_dotenv(tmp_path, f"LOG_LEVEL=INFO\n\n{line}\n")
    assert refuse(tmp_path).startswith(".env:3: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{\n"API_PORT": 8100,\n}', "config.json:"),
        ("[1]", "config.json:1: this is not valid JSON: the file must hold one object"),
        ('{"API_PORT": true}', "config.json:1: API_PORT must be text, a number or null"),
        ('{\n"API_PORT": [1]}', "config.json:2: API_PORT must be text, a number or null"),
        ('{"API_PORT": null}', "config.json:1: API_PORT = null is not allowed"),
        ('{"REQUEST_TIMEOUT": NaN}', "config.json:1: REQUEST_TIMEOUT = 'NaN' is not allowed"),
        ('{"API_PORT": 1,\n"API_PORT": 2}', "config.json:2: API_PORT appears for the second time"),
    ],
)
def test_a_broken_config_json_is_named_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    """Syntax errors, wrong kinds of value and repeated keys carry the line."""
    write_json(tmp_path, text)
    assert refuse(tmp_path).startswith(expected)


@pytest.mark.parametrize("second", ["API_PORT=9000", "API_PORT=8100", "API_PORT="])
def test_a_key_that_stands_twice_in_a_file_is_refused_with_both_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], second: str
) -> None:
    """Nobody can see which of them counts; a key of both files is no such thing."""
    write_dotenv(tmp_path, f"API_PORT=8100\n\n# later\n{second}\n")
    write_json(tmp_path, '{"API_PORT": 8200}')
    wanted = ".env:4: API_PORT appears for the second time, first at .env:1; remove one of them"
    assert refuse(tmp_path) == wanted
    assert show.main(["check"], root=tmp_path, environ={}) == show.WRONG
    assert wanted in capsys.readouterr().err
    write_dotenv(tmp_path, "API_PORT=8100\n")
    assert load(tmp_path).api_port == 8100


def test_files_that_are_not_text_are_named(tmp_path: Path) -> None:
    """Neither a folder nor another encoding ends in a traceback."""
    (tmp_path / ".env").write_bytes(b"LOG_LEVEL=INFO\nSTATE_DIR=\xff\n")
    (tmp_path / "config.json").mkdir()
    message = refuse(tmp_path)
    assert ".env:2: this is not UTF-8 text" in message
    assert "config.json: the file cannot be read: Is a directory" in message


def test_relative_paths_are_taken_from_the_folder_of_the_files(tmp_path: Path) -> None:
    """The working directory of a process does not matter."""
    settings = load(tmp_path, LOG_FILE="logs/all.log", STATE_DIR="state")
    assert settings.log_file == tmp_path / "logs" / "all.log"
    assert settings.spool_dir == tmp_path / "state" / "spool"
    assert settings.run_dir == tmp_path / "state" / "run"
    assert settings.log_dir == tmp_path / "state" / "logs"
    assert settings.ring_secret_path == tmp_path / "state" / "ring.secret"
    assert load(tmp_path, STATE_DIR="/srv/state").state_dir == Path("/srv/state")
    assert load(tmp_path, STATE_DIR="~/state").state_dir == Path.home() / "state"


def test_derived_lists_are_parsed(tmp_path: Path) -> None:
    """Counts by rank and single origins can be used as they are."""
    settings = load(
        tmp_path,
        LAYER_SPLIT="14, 16",
        LOCAL_RANKS="2",
        CORS_ORIGINS="https://a.org,https://b.org",
        ALLOWED_HOSTS="Ring.example.org, *.example.net,.example.com",
    )
    assert settings.layer_split == "14,16"
    assert settings.layer_counts == (14, 16)
    assert settings.cors_origin_list == ("https://a.org", "https://b.org")
    assert settings.allowed_host_list == ("ring.example.org", "*.example.net", ".example.com")
    assert load(tmp_path).allowed_host_list == ()
    assert load(tmp_path, ALLOWED_HOSTS="*").allowed_host_list == ("*",)
    assert load(tmp_path).layer_counts is None


def test_public_settings_are_json_and_hold_no_secrets(tmp_path: Path) -> None:
    """What the health route shows is every setting but the secret ones."""
    secret = {key for key in KEYS if Settings.about(key).is_secret}
    public = load(tmp_path, API_KEYS_FILE="keys").public()
    assert secret == {"API_KEYS_FILE", "RING_SECRET_FILE"}
    assert set(public) == set(KEYS) - secret
    assert json.loads(json.dumps(public)) == public
    assert public["API_PORT"] == 8100
    assert public["LOG_FILE"] is None


def test_a_secret_value_is_not_repeated_in_an_error(tmp_path: Path) -> None:
    """Errors of secret settings hide what was written."""
    message = refuse(tmp_path, API_KEYS_FILE="topsecret\1")
    assert "topsecret" not in message
    assert "API_KEYS_FILE = (hidden)" in message


@given(key=st.sampled_from(KEYS), value=st.text(max_size=30))
def test_any_text_is_either_taken_or_refused_in_one_sentence(key: str, value: str) -> None:
    """No value of any setting leads to another exception or to an unnamed key."""
    try:
        settings = load_settings({key: value}, root=Path("/nonexistent"), environ={})
    except SettingsError as error:
        sentences = [problem.sentence for problem in error.problems]
    else:
        sentences = [f"{key} is taken: {json.dumps(settings.public())}"]
    assert len(sentences) == 1
    assert key in sentences[0]
