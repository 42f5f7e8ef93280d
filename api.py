"""Runs the front door: settings, logs, descriptor limits, and uvicorn on its own or an inherited socket.

    python api.py [--fd N]      N is a listening socket that the supervisor keeps: a restart refuses nobody;
                                with it, the end of standard input ends the front door, too

Exit codes: 0 after SIGTERM or SIGINT, 2 when the settings or the model do not let it start (the reason is
on stderr), 5 when the supervisor is gone.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import NoReturn

import uvicorn

from config import ConfigError, Settings, load_settings
from config.limits import raise_descriptor_limits
from config.logs import configure_logging
from frontdoor.app import make_app
from frontdoor.auth import KeysUnreadable
from prompts.tokenizer import TokenizerUnusable
from spool import SpoolError

KEEP_ALIVE_SECONDS = 75  # longer than the idle time of common proxies and clients, which then close first
MAX_HEADER_BYTES = 64 * 1024
DESCRIPTORS_KEPT_FREE = 128
EXIT_SUPERVISOR_GONE = 5  # as a rank

log = logging.getLogger("api")


def main() -> int:
    """Serve until told to stop."""
    arguments = parse_arguments()
    try:
        settings = load_settings()
        configure_logging(settings, process="api")
        shortfall = raise_descriptor_limits(settings)
        if shortfall is not None:
            log.warning("%s", shortfall)
        app = make_app(settings)
    except (ConfigError, KeysUnreadable, TokenizerUnusable, SpoolError) as error:
        print(error, file=sys.stderr)
        return 2
    # uvicorn raises the signal that stopped it once more when it has shut down: that is a clean end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit_cleanly)
    server = uvicorn.Server(server_config(app, settings))
    if arguments.fd is None:
        server.run()
    else:
        threading.Thread(target=_end_with_supervisor, name="lifeline", daemon=True).start()
        server.run(sockets=[socket.socket(fileno=arguments.fd)])
    return 0


def _end_with_supervisor() -> None:
    """Wait for the end of standard input: whoever owns the socket is gone. The spool has all there is."""
    while os.read(0, 4096):
        pass
    log.error("the supervisor is gone; ending")
    os._exit(EXIT_SUPERVISOR_GONE)


def _exit_cleanly(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="The HTTP front door.")
    parser.add_argument(
        "--fd", type=int, help="an inherited listening socket, instead of API_HOST and API_PORT"
    )
    return parser.parse_args()


def server_config(app: object, settings: Settings) -> uvicorn.Config:
    """Say how uvicorn serves the app; its own log lines go where ours go."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        host=settings.api_host,
        port=settings.api_port,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.shutdown_timeout),
        limit_concurrency=max(64, settings.file_descriptor_soft_limit - DESCRIPTORS_KEPT_FREE),
        backlog=1024,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )


if __name__ == "__main__":
    sys.exit(main())
