"""Runs the front door: settings, logs, descriptor limits, and uvicorn on its own or an inherited socket.

    python api.py [--fd N]      N is a listening socket that the supervisor keeps, so that a restart refuses
                                no connection. With it, the end of standard input also ends the front door
                                (frontdoor/supervised.py).

Exit codes: 0 after SIGTERM or SIGINT, 2 when the settings or the model stop the start (reason on stderr), 5
when the supervisor is gone, 6 when the disk refuses a write.
"""

import argparse
import gc
import logging
import os
import signal
import socket
import sys
from types import FrameType
from typing import NoReturn

import uvicorn

from config import Settings
from config.binding import check_binding, resolve
from config.errors import ServiceError
from config.limits import raise_descriptor_limits
from config.live import load_inherited_settings
from config.logs import configure_logging, say
from frontdoor.app import make_app
from frontdoor.http.connections import Connection
from frontdoor.supervised import SupervisedServer, follow_supervisor
from prompts.tokenizer import TokenizerUnusable
from spool import SpoolUnavailable

KEEP_ALIVE_SECONDS = 75  # longer than the idle time of common proxies and clients, so that they close first
SWITCH_SECONDS = 0.0005  # threads that read and encode long bodies soon let the event loop go on
DESCRIPTORS_KEPT_FREE = 128
EXIT_SUPERVISOR_GONE, EXIT_DISK_REFUSED = 5, 6  # the same as a rank's

log = logging.getLogger("api")


def main() -> int:
    """Serve until a signal."""
    arguments = parse_arguments()
    try:
        settings = load_inherited_settings()
        configure_logging(settings, process="api")
        shortfall = raise_descriptor_limits(settings)
        if shortfall is not None:
            log.warning("%s", shortfall)
        listening = None if arguments.fd is None else socket.socket(fileno=arguments.fd)
        check_who_may_connect(settings, listening)
        app = make_app(settings)
    except SpoolUnavailable as error:
        say(error)
        return EXIT_DISK_REFUSED
    except (ServiceError, TokenizerUnusable) as error:
        say(error)
        return 2
    # After its shutdown, uvicorn raises the signal again: that is a clean end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit_cleanly)
    # The objects of the start stay: full collections during streams must not scan them.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)
    if listening is None:
        uvicorn.Server(server_config(app, settings)).run()
    else:
        follow_supervisor(app, _end_with_supervisor)
        server = SupervisedServer(
            server_config(app, settings), lambda: app.state.front_door.settings.request_timeout
        )
        server.run(sockets=[listening])
    return 0


def check_who_may_connect(settings: Settings, listening: socket.socket | None) -> None:
    """Refuse an address that others can reach without an API key, or warn about it.

    Raises:
        BindingRefused: the message has the reason.
    """
    # An inherited socket may listen on another address than API_HOST.
    addresses = resolve(settings.api_host) if listening is None else [str(listening.getsockname()[0])]
    warning = check_binding(addresses, has_keys=settings.api_keys_file is not None)
    if warning is not None:
        log.warning("%s", warning)


def _end_with_supervisor() -> None:
    """End at once: the spool has every accepted request."""
    log.error("the supervisor is gone; the front door ends")
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
    """Configure uvicorn for the app; it uses the process's log."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        host=settings.api_host,
        port=settings.api_port,
        loop="uvloop",
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.shutdown_timeout) + 1,
        limit_concurrency=max(64, settings.file_descriptor_soft_limit - DESCRIPTORS_KEPT_FREE),
        backlog=1024,
    )


if __name__ == "__main__":
    sys.exit(main())
