"""A front door without a model: answers GET /health and POST /generate on the socket that it is handed.

A file idle-rank in FAKE_ROOT leaves rank 1 out of the proof; refuse-api, or FAKE_API=refuse, ends it with 2.
Exits at end of file on its standard input, unless FAKE_API=deaf. With FAKE_BUSY_S it answers SIGUSR1 by
computing for so long, and nothing else.
"""

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """Two routes."""

    def do_GET(self) -> None:
        """Say which process answers."""
        self._respond("application/json", json.dumps({"pid": os.getpid()}))

    def do_POST(self) -> None:
        """Stream two tokens and the proof."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not body["prompt"]:
            self.send_error(400)
            return
        events = ["event: token\ndata: " + json.dumps({"text": text}) for text in ("Par", "is")]
        events.append("event: done\ndata: " + json.dumps(make_result()))
        self._respond("text/event-stream", ": hello\n\n" + "".join(event + "\n\n" for event in events))

    def _respond(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def has_file(name: str) -> bool:
    """Whether a test has put it there."""
    return Path(os.environ.get("FAKE_ROOT", "/nowhere"), name).exists()


def make_result() -> dict[str, object]:
    """A result in which each rank of ring.json took part."""
    ring = json.loads((Path(os.environ["STATE_DIR"]) / "run" / "ring.json").read_text(encoding="utf-8"))
    ranks = [
        {**rank, "num_frames": 3, "busy_s": 0.5, "busy_share": 0.5}
        for rank in ring["ranks"]
        if rank["rank"] != 1 or not has_file("idle-rank")
    ]
    return {
        "text": "Paris",
        "finish_reason": "stop",
        "usage": {"completion_tokens": 2},
        "performance": {"ranks": ranks},
    }


def be_busy(*_: object) -> None:
    """Compute in the thread that accepts connections."""
    end = time.monotonic() + float(os.environ["FAKE_BUSY_S"])
    while time.monotonic() < end:
        pass


def main() -> None:
    """Serve until told to go."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    if os.environ.get("FAKE_API") == "refuse" or has_file("refuse-api"):
        print("api: API_KEYS_FILE holds no key", file=sys.stderr)
        sys.exit(2)
    ThreadingHTTPServer.daemon_threads = False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = socket.socket(fileno=parser.parse_args().fd)
    # Finish what is asked, as the real one does.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())

    signal.signal(signal.SIGUSR1, be_busy)

    def watch() -> None:
        for line in sys.stdin:
            print(f"api: told {line}", end="", file=sys.stderr, flush=True)
        if os.environ.get("FAKE_API") != "deaf":
            os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    print(json.dumps({"event": "serving"}), flush=True)
    server.serve_forever(poll_interval=0.05)
    server.server_close()


if __name__ == "__main__":
    main()
