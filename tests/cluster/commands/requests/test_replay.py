"""`replay ID`: a finished request runs again from its file, and the first difference is shown."""

import io
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from cluster.commands.requests import replay as room
from cluster.commands.requests.replay import (
    ReplayRefused,
    Run,
    complete,
    describe_token,
    find_difference,
    replay,
)
from cluster.terminal import Terminal
from config import Settings, load_settings
from spool import Request, Result, SamplingParams, Spool, TokenRecord, Usage
from tests.fakes.checkpoints import make_checkpoint
from tests.fakes.fake_engine import FakeEngine
from tests.services.frontdoor_service import until
from tests.services.ring_service import RingService

NUM_TOKENS = 6


@pytest.fixture
def engine(spool: Spool, settings: Settings) -> Iterator[FakeEngine]:
    with FakeEngine(spool, settings.run_dir) as engine:
        yield engine


def make_request(text: str = "hello", max_tokens: int = NUM_TOKENS) -> Request:
    params = SamplingParams(max_tokens, temperature=0.7, seed=11)
    return Request(uuid.uuid4().hex, params, text, (1, 2), "h", "tiny", owner="me", created_unix=time.time())


def finish(spool: Spool, request: Request) -> Result:
    """Submit and wait for the answer."""
    spool.submit(request)
    # The request's file moves beside its result a moment after that is there.
    until(lambda: spool.state(request.id) == "done" and Path(spool.folder.request(request.id)).exists())
    result = spool.read_result(request.id)
    assert result is not None
    return result


def forge(spool: Spool, result: Result, token_ids: tuple[int, ...]) -> None:
    """Put other tokens in the place of the old answer, and take its log away."""
    path = Path(spool.folder.result(result.id))
    path.unlink()
    path.write_bytes(msgspec.structs.replace(result, token_ids=token_ids).to_json())
    (spool.folder.stream / result.id).unlink()


def run_replay(settings: Settings, text: str) -> tuple[int, str]:
    output = io.StringIO()
    code = replay(settings, Terminal(output), text)
    return code, output.getvalue()


@pytest.mark.usefixtures("engine")
def test_the_same_tokens_are_identical(settings: Settings, spool: Spool, engine: FakeEngine) -> None:
    """The new run has an id of its own and everything else of the old one, which stays as it was."""
    result = finish(spool, make_request())
    code, output = run_replay(settings, f"chatcmpl-{result.id}")
    assert (code, output.splitlines()[-1]) == (0, f"identical: {NUM_TOKENS} tokens")
    first, second = engine.claimed
    assert second.id != first.id
    assert second.client_id == f"replay:{first.id}"
    assert (
        msgspec.structs.replace(second, id=first.id, client_id="", created_unix=first.created_unix) == first
    )
    assert spool.read_result(first.id) == result


@pytest.mark.usefixtures("engine")
def test_the_first_difference_is_shown(settings: Settings, spool: Spool) -> None:
    """Index, both tokens and what came before, and that a near tie may be the reason; exit code 1."""
    result = finish(spool, make_request())
    forge(spool, result, (100, 101, 999, *result.token_ids[3:]))
    code, output = run_replay(settings, result.id)
    assert code == 1
    assert "different: token 2 of 6, after 2 equal ones" in output
    assert "(token 999)" in output
    assert '"wörld" (token 102)' in output
    assert "another batch" in output


@pytest.mark.parametrize("change", [-2, 2])
@pytest.mark.usefixtures("engine")
def test_another_length_is_a_difference(settings: Settings, spool: Spool, change: int) -> None:
    """Where one of the two answers ends and the other goes on, they differ at the end of the shorter."""
    result = finish(spool, make_request())
    token_ids = tuple(range(100, 100 + NUM_TOKENS + change))
    forge(spool, result, token_ids)
    code, output = run_replay(settings, result.id)
    assert code == 1
    assert f"token {NUM_TOKENS + min(change, 0)} of {len(token_ids)}" in output
    assert "the end of the answer" in output


def test_a_cancelled_answer_is_compared_as_far_as_it_came(
    settings: Settings, spool: Spool, engine: FakeEngine
) -> None:
    """The new run is cancelled there, too."""
    request = make_request("[hold]")
    spool.submit(request)
    until(lambda: len(engine.token_unix.get(request.id, ())) == 1)
    spool.cancel(request.id)
    until(lambda: spool.state(request.id) == "done")
    code, output = run_replay(settings, request.id)
    assert code == 0
    assert "identical: 1 tokens, up to where it was cancelled" in output
    new_id = engine.claimed[1].id
    until(lambda: spool.state(new_id) == "done")
    result = spool.read_result(new_id)
    assert result is not None
    assert result.finish_reason == "cancelled"


@pytest.mark.usefixtures("engine")
def test_what_cannot_be_replayed_is_refused_with_the_reason(settings: Settings, spool: Spool) -> None:
    """Bad and unknown ids, answers that are errors, and requests whose file was not kept."""
    unknown = uuid.uuid4().hex
    failed = finish(spool, make_request("[fail]"))
    lost = finish(spool, make_request())
    Path(spool.folder.request(lost.id)).unlink()
    for text, reason in (
        ("../../etc/passwd", "is no request id"),
        (unknown, "RESULT_RETENTION_HOURS=24"),
        (failed.id, "has no answer to compare with: it went wrong"),
        (lost.id, "its request file does not"),
    ):
        with pytest.raises(ReplayRefused, match=reason) as caught:
            run_replay(settings, text)
        assert caught.value.exit_code == 2
    assert spool.depth().num_waiting == 0


def test_looking_makes_no_spool(settings: Settings) -> None:
    """A STATE_DIR that was never served stays as it is."""
    with pytest.raises(ReplayRefused, match="there is no spool"):
        run_replay(settings, uuid.uuid4().hex)
    assert not settings.spool_dir.exists()


def test_a_running_request_is_not_replayed(settings: Settings, spool: Spool, engine: FakeEngine) -> None:
    """It says so, and the request goes on."""
    request = make_request("[hold]")
    spool.submit(request)
    until(lambda: bool(engine.claimed))
    with pytest.raises(ReplayRefused, match="is active"):
        run_replay(settings, request.id)
    engine.release()
    until(lambda: spool.state(request.id) == "done")


def test_another_model_or_none_is_refused(settings: Settings, spool: Spool, engine: FakeEngine) -> None:
    """By the name that the running ring says, before anything is submitted."""
    result = finish(spool, make_request())
    engine.say("ready", model="large")
    with pytest.raises(ReplayRefused, match="the request was for 'tiny', 'large' is served now"):
        run_replay(settings, result.id)
    engine.say("stopped")
    with pytest.raises(ReplayRefused, match="nothing is running"):
        run_replay(settings, result.id)
    assert len(engine.claimed) == 1


@pytest.mark.usefixtures("engine")
def test_other_weights_are_told_from_other_tokens(
    settings: Settings, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that began with another weights hash is not compared."""
    result = finish(spool, make_request())
    read = room.read_original

    def read_with_other_weights(spool: Spool, text: str, hours: float) -> tuple[Request, Run]:
        request, run = read(spool, text, hours)
        assert run.header is not None
        return request, replace(run, header=replace(run.header, weights_hash="others"))

    monkeypatch.setattr(room, "read_original", read_with_other_weights)
    with pytest.raises(ReplayRefused, match="its weights or its tokenizer"):
        run_replay(settings, result.id)


def test_a_damaged_log_is_completed_from_the_result() -> None:
    """The result has every id, and all text; a log that contradicts it is not believed."""
    result = Result("0" * 32, "m", "abcd", (1, 2, 3), "stop", Usage(), {}, None, 0.0)
    logged = [TokenRecord(0, 1, "ab"), TokenRecord(1, 7, "x")]
    assert complete(logged, result) == [
        TokenRecord(0, 1, "ab"),
        TokenRecord(1, 2, "cd"),
        TokenRecord(2, 3, ""),
    ]


def test_a_difference_needs_a_known_end() -> None:
    """An answer that is not over yet, or was cancelled, is not shorter: its end is not known."""
    tokens = [TokenRecord(index, index, json.dumps(index)) for index in range(3)]
    assert find_difference(Run(tokens, None, True), Run(tokens[:1], None, False)) is None
    assert find_difference(Run(tokens, None, True), Run(tokens[:1], None, True)) == 1
    assert find_difference(Run(tokens[:1], None, False), Run(tokens, None, True)) is None
    assert find_difference(Run(tokens[:1], None, True), Run(tokens, None, False)) == 1


def test_a_token_without_text_shows_the_text_it_came_out_with() -> None:
    """Half a character is held back until it is whole."""
    run = Run([TokenRecord(0, 5, ""), TokenRecord(1, 6, "ü"), TokenRecord(2, 7, "x")], None, True)
    assert describe_token(run, 0) == '"ü" (token 5)'
    assert describe_token(run, 3) == "the end of the answer"


@pytest.mark.slow
def test_a_sampled_answer_of_a_real_ring_is_repeated(tmp_path: Path) -> None:
    """Seed and params give the same tokens again; another seed in the kept file does not."""
    model = make_checkpoint(tmp_path / "tiny-llama", "llama")
    with RingService(tmp_path / "state", model, 2) as ring:
        result = ring.ask(ring.request(range(9), max_tokens=24, temperature=1.0, seed=11))[0]
        settings = load_settings(ring.settings, root=tmp_path, environ={})
        assert run_replay(settings, result.id)[0] == 0
        spool = ring.spool()
        request = spool.read_request(result.id)
        assert request is not None
        params = msgspec.structs.replace(request.params, seed=12)
        kept = msgspec.structs.replace(request, params=params)
        Path(spool.folder.request(result.id)).unlink()
        Path(spool.folder.request(result.id)).write_bytes(kept.to_json())
        code, output = run_replay(settings, result.id)
    assert code == 1
    assert "different: token" in output
