"""A client that asks one request after the other, whatever happens, until its standard input ends.

Run on a host: `python -m tests.cluster.on_hosts.asking URL`. Each request has an idempotency key and is sent
again with the same one while there is no answer. Prints {"num_answered", "wrong": […]} at the end: what was
sent has ended in an answer, or is wrong.
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import urllib.error
import urllib.request
import uuid

NUM_TOKENS = 4
TRY_LIMIT_S = 30.0
PAUSE_S = 0.2
MAX_TRIES = 600


def has_to_stop(pause_s: float) -> bool:
    """Wait a little; True when standard input has ended."""
    return bool(select.select([sys.stdin], [], [], pause_s)[0])


def ask_until_answered(url: str, number: int) -> str | None:
    """Send one request until it is answered; what was wrong, if anything."""
    body = {"prompt": f"Say the number {number}.", "max_tokens": NUM_TOKENS, "seed": number, "stop": []}
    headers = {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
    reason = ""
    for _ in range(MAX_TRIES):
        request = urllib.request.Request(f"{url}/generate", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=TRY_LIMIT_S) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            if error.code < 429:
                return f"{number}: status {error.code}"
            reason = f"status {error.code}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(error)
        else:
            if answer["finish_reason"] in ("length", "stop") and answer["usage"]["completion_tokens"]:
                return None
            return f"{number}: {answer}"
        has_to_stop(PAUSE_S)
    return f"{number}: never answered ({reason})"


def main() -> None:
    """Ask until told to stop."""
    url, num_answered, wrong = sys.argv[1], 0, []
    while not has_to_stop(PAUSE_S):
        if trouble := ask_until_answered(url, num_answered):
            wrong.append(trouble)
        num_answered += 1
    print(json.dumps({"num_answered": num_answered, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main()
