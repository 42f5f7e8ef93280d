"""Model families beside the default one, over HTTP: eight clients at once, all ranks killed in the middle."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from config import load_settings
from distributed.self_test.seeded_models import make_model_folder
from spool.names import id_of
from tests.fakes.family_configs import CONFIGS
from tests.services.frontdoor_service import serving
from tests.services.ring_service import RingService

pytestmark = pytest.mark.long

TYPES = (
    "apertus", "cohere", "deepseek_v3", "deepseek_v32", "dots1", "gemma3_text", "glm4", "glm4_moe", "gpt_oss",
    "granite", "lfm2", "minimax_m2", "mixtral", "nemotron_h", "olmo2", "phi3", "qwen2_moe", "qwen3_5_moe",
    "qwen3_next", "seed_oss", "smollm3",
)  # fmt: skip
WINDOWED = ("gemma3_text", "gpt_oss", "gemma4_text")  # keep windows alone at long contexts
NUM_CLIENTS = 8
NUM_TOKENS = 200
KILLED_AT = 60  # tokens of the first client's answer


@pytest.mark.parametrize(
    ("model_type", "context"), [*((name, 4096) for name in TYPES), *((name, 8192) for name in WINDOWED)]
)
def test_answers_are_those_of_clients_alone(model_type: str, context: int, tmp_path: Path) -> None:
    """Prompts of unlike length; the answers continue from their logs on a new ring."""
    model = make_model_folder(tmp_path / "tiny", CONFIGS[model_type])
    values = {
        "MODEL_REPO": str(model),
        "STATE_DIR": str(tmp_path / "state"),
        "SPOOL_DURABILITY": "process",
        "MAX_SEQUENCE_LENGTH": str(context),
    }
    numbers = random.Random(model_type)
    prompts = [[numbers.randrange(256) for _ in range(3 + 9 * client)] for client in range(NUM_CLIENTS)]
    with (
        RingService(tmp_path / "state", model, 2, **values) as ring,
        serving(load_settings(values, root=tmp_path, environ={})) as url,
        httpx2.Client(base_url=url, timeout=120) as http,
        ThreadPoolExecutor(NUM_CLIENTS) as threads,
    ):

        def ask(client: int) -> list[int]:
            body = {"prompt": prompts[client], "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
            answer = http.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            request_id = answer.json()["id"].removeprefix("cmpl-")
            result = ring.spool().read_result(request_id)
            assert result is not None
            return list(result.token_ids)

        alone = [ask(client) for client in range(NUM_CLIENTS)]
        assert all(len(ids) == NUM_TOKENS for ids in alone)
        assert ("layers keep windows" in ring.log(0)) == (context > 4096)
        running = [threads.submit(ask, client) for client in range(NUM_CLIENTS)]
        _wait_until_underway(ring)
        ring.kill()
        assert not any(each.done() for each in running)
        ring.start()
        assert [each.result() for each in running] == alone


def _wait_until_underway(ring: RingService) -> None:
    """Wait until every request has been claimed and one has many tokens."""
    spool, deadline, pause = ring.spool(), time.monotonic() + 60, threading.Event()
    while time.monotonic() < deadline:
        ids = [id_of(name) for name in spool.names(spool.folder.active)]
        if len(ids) == NUM_CLIENTS and any(len(spool.open_log(id).read_new()) > KILLED_AT for id in ids):
            return
        pause.wait(0.005)
    raise AssertionError("the requests never ran together")
