"""API_KEYS_FILE: what a line may be, and messages that never contain a key."""

import hashlib
from pathlib import Path

import pytest

from config.api_keys import ApiKey, KeysUnreadable, hash_key, make_key, read_api_keys

DIGEST = hashlib.sha256(b"sk-secret").hexdigest()


def read(folder: Path, text: str) -> list[ApiKey]:
    (folder / "keys").write_text(text, encoding="utf-8")
    return read_api_keys(folder / "keys")


def test_a_line_is_a_key_or_its_digest_with_options(tmp_path: Path) -> None:
    """In the file's order; a line that comes twice is one key, and a bare key is what it always was."""
    text = f"""# ours
    plain

    sha256:{DIGEST.upper()} requests_per_minute=0 name=bob@example.org
    sk-abc name=alice max_in_flight=4 requests_per_minute=60
    plain
    """
    assert read(tmp_path, text) == [
        ApiKey(hash_key("plain"), "plain"),
        ApiKey(DIGEST, name="bob@example.org", requests_per_minute=0),
        ApiKey(hash_key("sk-abc"), "sk-abc", "alice", 4, 60),
    ]
    assert [key.label for key in read_api_keys(tmp_path / "keys")][:2] == [
        hash_key("plain")[:16],
        "bob@example.org",
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("sk-secret sk-other", "word 2 is not allowed"),
        ("sk-secret name=a c2VjcmV0=", "word 3 is not allowed"),
        ("sk-secret max_in_flight=many", "word 2 is not allowed"),
        ("sk-secret max_in_flight=-1", "word 2 is not allowed"),
        ("sk-secret tokens_per_minute=5", "word 2 is not allowed"),
        ("sk-secret name=", "word 2 is not allowed"),
        ("sk-secret name=a/b", "word 2 is not allowed"),
        ("sk-secret name=a name=b", "an option is given twice"),
        (f"sha256:{DIGEST[1:]}", "word 1 is not allowed"),
        ("first name=b", "this key or name is in line 1 already"),
        ("sk-other name=a", "this key or name is in line 1 already"),
        (f"sha256:{hash_key('first')}", "this key or name is in line 1 already"),
    ],
)
def test_a_wrong_line_is_named_without_a_word_of_it(tmp_path: Path, line: str, reason: str) -> None:
    """File, line, and what is allowed; any word may be a key."""
    with pytest.raises(KeysUnreadable) as raised:
        read(tmp_path, f"first name=a\n\n{line}\n")
    message = str(raised.value)
    assert f"API_KEYS_FILE: {tmp_path / 'keys'}:3: {reason}" in message
    assert not {"sk-secret", "sk-other", "c2VjcmV0", "first", DIGEST[1:]} & set(message.split())
    assert "in line 1" in message or "twice" in message or "requests_per_minute=N" in message


@pytest.mark.parametrize("text", [b"", b"# none\n", b"\xff\n"])
def test_a_file_without_a_readable_key_is_refused(tmp_path: Path, text: bytes) -> None:
    """So is a missing one."""
    path = tmp_path / "keys"
    path.write_bytes(text)
    for file in (path, tmp_path / "missing"):
        with pytest.raises(KeysUnreadable, match=f"API_KEYS_FILE: .*{file}"):
            read_api_keys(file)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    """Editors of Windows write one, as before the lines of .env."""
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbfsk-abc\r\nsk-def name=x\r\n")
    assert [key.text for key in read_api_keys(tmp_path / "keys")] == ["sk-abc", "sk-def"]


def test_a_key_does_not_appear_in_its_repr() -> None:
    """Nor in a traceback, then."""
    assert "sk-secret" not in repr(ApiKey(DIGEST, "sk-secret"))


def test_a_new_key_fits_its_line(tmp_path: Path) -> None:
    """The line contains the digest only."""
    text, line = make_key("alice")
    (key,) = read(tmp_path, line)
    assert (key.digest, key.text, key.name) == (hash_key(text), None, "alice")
    assert text not in line
    with pytest.raises(ValueError, match="not allowed"):
        make_key("a b")
