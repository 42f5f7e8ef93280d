"""Liveness, readiness, the root, the page and the metrics."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from config import Settings
from config.run_files import write_json
from frontdoor.ring_status import RingStatus, judge
from spool.fsio import DiskSpace
from tests.services.frontdoor_service import Service, running_service

NOW = 1_000_000.0


def ring(**members: Any) -> dict[str, Any]:
    return {"phase": "ready", "updated_unix": NOW - 1, "last_lap_unix": NOW - 1, **members}


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, "down"),
        (ring(), "ready"),
        (ring(last_lap_unix=NOW - 500), "stalled"),  # an idle ring makes a lap every 5 s
        (ring(last_lap_unix=None), "stalled"),
        (ring(last_lap_unix=NOW - 500, queue={"num_running": 1}), "stalled"),
        (ring(last_lap_unix=None, queue={"num_running": 1}), "stalled"),
        (ring(last_lap_unix=NOW - 5, queue={"num_running": 1}), "ready"),
        (ring(updated_unix=NOW - 11), "down"),
        (ring(updated_unix=NOW + 86_400), "down"),  # written before the clock was set back
        (ring(phase="loading"), "loading"),
        (ring(phase="connecting"), "connecting"),
        (ring(phase="loading", updated_unix=NOW - 60), "down"),
        (ring(phase="failed", reason="no memory", updated_unix=NOW - 60), "failed"),
        (ring(phase="stopped", updated_unix=NOW - 60), "stopped"),
        ({"phase": None, "updated_unix": "yesterday"}, "down"),
    ],
)
def test_readiness_means_progress(status: dict[str, Any], state: str) -> None:
    """Green only when rank 0 spoke in the last ten seconds, and a lap was made in them."""
    readiness = judge(status, {}, now_unix=NOW)
    assert readiness.state == state
    assert (readiness.reason is None) == readiness.is_ready


WHY = "rank 1 was killed by SIGKILL"
SILENT, SILENCE = ring(updated_unix=NOW - 60), "rank 0 has not reported for 60 s"
DEGRADED = {"state": "degraded", "reason": WHY}


@pytest.mark.parametrize(
    ("status", "supervisor", "state", "reason"),
    [
        # Rank 0 says nothing, or nothing new: the supervisor knows why.
        ({}, {"state": "starting", "reason": WHY}, "down", WHY),
        ({}, {"state": "starting", "reason": None}, "down", "rank 0 has not reported yet"),
        (SILENT, DEGRADED, "down", WHY),
        (SILENT, {"state": "degraded"}, "down", SILENCE),
        (SILENT, {"state": "ready"}, "down", SILENCE),
        ({**SILENT, "phase": "loading"}, DEGRADED, "down", WHY),
        # Rank 0 has a reason of its own, or none.
        (ring(phase="failed", reason="no memory"), DEGRADED, "failed", "no memory"),
        (ring(phase="loading"), DEGRADED, "loading", WHY),
        (ring(phase="loading"), {"state": "starting"}, "loading", "the ring is loading"),
        # An earlier ring's last word is not the present one's.
        (ring(epoch=3), {**DEGRADED, "epoch": 4}, "down", WHY),
        (ring(epoch=3), {"state": "starting", "epoch": 4}, "down", "a new ring is starting"),
        (ring(epoch=4), {"state": "ready", "epoch": 4}, "ready", None),
        # Given up is given up, whatever rank 0 said last.
        (ring(), {"state": "failed", "reason": WHY}, "failed", WHY),
        ({}, {"state": "failed"}, "failed", "the supervisor has given up; its log says why"),
    ],
)
def test_the_supervisor_says_why_where_rank_0_does_not(
    status: dict[str, Any], supervisor: dict[str, Any], state: str, reason: str | None
) -> None:
    """Red has the best reason there is, and the supervisor's word never makes anything green."""
    readiness = judge(status, supervisor, now_unix=NOW)
    assert (readiness.state, readiness.reason) == (state, reason)


@pytest.mark.parametrize("has_status", [False, True])
def test_readyz_health_and_metrics_are_red_with_the_supervisors_reason(
    service: Service, has_status: bool
) -> None:
    """Rank 0's status is gone, or ten seconds old: 503, and what the supervisor says."""
    run_dir = service.settings.run_dir
    service.engine.say("ready", updated_unix=time.time() - 60)
    if not has_status:
        (run_dir / "ring.json").unlink()
    write_json(run_dir / "supervisor.json", {**DEGRADED, "pid": os.getpid()})
    for path in ("/readyz", "/health"):
        answer = service.http.get(path)
        assert (answer.status_code, answer.json()["status"]) == (503, "down")
        assert answer.json()["reason"] == WHY
    assert "ring_ready 0.0" in service.http.get("/metrics").text


def test_the_last_word_of_a_supervisor_that_is_gone_counts_for_nothing(service: Service) -> None:
    """A rank 0 that started later without a supervisor is judged by its own status."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(10)
    state = {"state": "failed", "reason": WHY, "epoch": 9, "pid": gone.pid}
    write_json(service.settings.run_dir / "supervisor.json", state)
    assert service.http.get("/readyz").json()["status"] == "ready"
    assert service.http.post("/generate", json={"prompt": "hi"}).status_code == 200


def test_a_reason_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    """The public reason names the failure without folders; addresses are unchanged."""
    reason = (
        f"rank 0 exited with code 2: '{tmp_path}/tiny/config.json' is damaged, see http://127.0.0.1:1/a/b"
    )
    status = RingStatus(tmp_path)
    for name in ("supervisor.json", "ring.json"):
        write_json(tmp_path / name, {"state": "failed", "reason": reason})
    reason = "rank 0 exited with code 2: '…/config.json' is damaged, see http://127.0.0.1:1/a/b"
    assert status.failure() == status.readiness().reason == reason
    assert status.ring()["reason"] == reason


def test_a_status_that_cannot_be_read_is_red(tmp_path: Path) -> None:
    """A broken or unreadable file is no ring, and no 500."""
    path = tmp_path / "ring.json"
    path.mkdir()
    status = RingStatus(tmp_path)
    assert status.readiness().state == "down"
    path.rmdir()
    path.write_text("{broken")
    assert status.readiness().state == "down"


def test_readyz_and_health_follow_the_ring(service: Service) -> None:
    """503 with the reason while the ring is not ready; livez does not care."""
    service.engine.say("ready")
    assert service.http.get("/readyz").json() == {"status": "ready", "reason": None}
    service.engine.say("loading", reason="rank 1 loads its layers")
    for path in ("/readyz", "/health"):
        answer = service.http.get(path)
        assert answer.status_code == 503
        assert answer.json()["status"] == "loading"
        assert answer.json()["reason"] == "rank 1 loads its layers"
        assert answer.headers["retry-after"]
    assert service.http.get("/livez").json()["status"] == "alive"
    service.engine.say("ready")
    health = service.http.get("/health").json()
    assert health["status"] == "ready"
    assert health["ring"]["ranks"][0]["num_layers"] == 30
    assert health["settings"]["MAX_SEQUENCE_LENGTH"] == 256
    assert "API_KEYS_FILE" not in health["settings"]


def test_health_and_models_show_no_place_on_this_machine(service: Service) -> None:
    """Paths are left out, and a model in a folder appears by its name."""
    health = service.http.get("/health")
    shown = health.json()["settings"]
    places = [key for key in Settings.all_keys() if isinstance(service.settings.value(key), Path)]
    assert "STATE_DIR" in places
    assert not {*places, "LOG_FILE", "MODEL_CACHE_DIR"} & shown.keys()
    assert shown["MODEL_REPO"] == "tiny"
    models = service.http.get("/v1/models")
    assert models.json()["data"][0]["root"] == "tiny"
    for text in (health.text, models.text):
        assert str(service.settings.state_dir.parent) not in text


def test_a_ring_that_was_given_up_refuses_new_requests(service: Service) -> None:
    """While it only loads, requests are accepted and wait; when the supervisor gave up they are refused."""
    service.engine.say("loading")
    assert service.http.post("/generate", json={"prompt": "hi"}).status_code == 200
    state = {"updated_unix": time.time(), "state": "failed", "reason": "rank 1 died five times"}
    write_json(service.settings.run_dir / "supervisor.json", state)
    answer = service.http.post("/generate", json={"prompt": "hi"})
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "ring_down"
    assert "rank 1 died five times" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"]
    assert service.http.get("/readyz").json()["status"] == "failed"
    write_json(service.settings.run_dir / "supervisor.json", {**state, "state": "ready"})
    assert service.http.post("/generate", json={"prompt": "hi"}).status_code == 200


def test_the_root_introduces_the_service(service: Service) -> None:
    """Name, version, model and endpoints for programs."""
    found = service.http.get("/").json()
    assert found.keys() == {"name", "version", "model", "endpoints"}
    assert "POST /generate" in found["endpoints"]
    assert "DELETE /requests/{request_id}" in found["endpoints"]


def test_a_browser_gets_the_page(service: Service) -> None:
    """The page, its style and its script come from here, and may load nothing from elsewhere."""
    page = service.http.get("/", headers={"Accept": "text/html,application/xhtml+xml"})
    assert page.headers["content-type"].startswith("text/html")
    assert page.text == service.http.get("/ui").text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name, media_type in (("page.css", "text/css"), ("page.js", "text/javascript")):
        assert f"/ui/{name}" in page.text
        part = service.http.get(f"/ui/{name}")
        assert part.headers["content-type"].startswith(media_type)
        assert "http://" not in part.text
        assert "https://" not in part.text
    for stranger in ("page.py", "..%2fapp.py", "index.htm"):
        assert service.http.get(f"/ui/{stranger}").status_code == 404


def test_metrics_report_the_ring(service: Service) -> None:
    """Prometheus text with our prefix, vLLM's suffixes and the ring's own numbers."""
    service.engine.say("ready")
    answer = service.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = set(answer.text.splitlines())
    assert {
        "ring_ready 1.0",
        "ring_num_requests_running 0.0",
        "ring_prompt_tokens_total 11.0",
        "ring_generation_tokens_total 22.0",
        'ring_request_success_total{finished_reason="stop"} 4.0',
        "ring_results_bytes 12288.0",
        'ring_results_removed_total{reason="age"} 2.0',
        'ring_results_removed_total{reason="size"} 5.0',
        "ring_kv_cache_usage_perc 0.25",
        "ring_num_preemptions_total 6.0",
        'ring_rank_up{host="127.0.0.1",rank="0"} 1.0',
        'ring_rank_layers{rank="0"} 30.0',
        'ring_rank_busy_ratio{rank="0"} 0.5',
        'ring_rank_memory_bytes{kind="weights",rank="0"} 1e+08',
    } <= lines


def test_histograms_count_the_answers_of_this_process(tmp_path: Path) -> None:
    """Streamed or not, each answer once: not when it is fetched again, and not what failed."""
    with running_service(tmp_path) as service:
        answer = service.http.post("/generate", json={"prompt": "hi"}).json()
        service.http.post("/generate", json={"prompt": "hi", "stream": True})
        service.http.post("/generate", json={"prompt": "[fail]"})
        service.http.get(f"/requests/{answer['id']}")
        service.http.get(f"/requests/{answer['id']}/stream")
        lines = service.http.get("/metrics").text.splitlines()
    for name in (
        "ring_time_to_first_token_seconds",
        "ring_inter_token_latency_seconds",
        "ring_e2e_request_latency_seconds",
        "ring_request_queue_time_seconds",
    ):
        assert f"{name}_count 2.0" in lines
        assert f'{name}_bucket{{le="+Inf"}} 2.0' in lines
    assert 'ring_time_to_first_token_seconds_bucket{le="0.005"} 2.0' in lines


def test_the_openapi_description_has_the_bodies(service: Service) -> None:
    """Every reference in it leads somewhere."""
    found = service.http.get("/openapi.json")
    schemas = found.json()["components"]["schemas"]
    assert {"GenerateBody", "ChatBody", "CompletionBody", "Message"} <= schemas.keys()
    references = {part.split('"')[0] for part in found.text.split("#/components/schemas/")[1:]}
    assert references <= schemas.keys()


def test_ready_means_that_requests_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, and one that refused a request, appear with the reason until they are fixed."""
    monkeypatch.setattr("spool.write_trouble.TRIAL_SECONDS", 0.0)
    with running_service(tmp_path) as service:
        assert service.http.get("/readyz").status_code == 200
        with monkeypatch.context() as full:
            space = DiskSpace(num_free_bytes=0, num_free_files=None)
            full.setattr("spool.fsio.FileSystem.disk_space", lambda *_: space)
            for path in ("/readyz", "/health"):
                answer = service.http.get(path)
                assert answer.status_code == 503
                assert answer.json()["status"] == "disk_full"
                assert "no request is accepted: the disk is nearly full" in answer.json()["reason"]
            assert service.http.post("/generate", json={"prompt": "hi"}).status_code == 507
            service.engine.say("loading")
            assert service.http.get("/readyz").json()["status"] == "loading"
            service.engine.say("ready")
        assert service.http.get("/readyz").status_code == 200
        with monkeypatch.context() as failing:

            def refuse(*_: object, **__: object) -> None:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))

            failing.setattr("spool.fsio.FileSystem.write_new", refuse)
            assert service.http.post("/generate", json={"prompt": "hi"}).status_code == 503
            answer = service.http.get("/readyz")
            assert (answer.status_code, answer.json()["status"]) == (503, "read_only")
            assert "Read-only file system" in answer.json()["reason"]
            assert str(tmp_path) not in answer.text
        assert service.http.get("/readyz").status_code == 200
        assert service.http.post("/generate", json={"prompt": "hi"}).status_code == 200
