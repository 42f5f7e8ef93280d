"""`demo`: starts the service on one machine with the built-in model, asks one question, and shows what to try
next.

Overrides only settings that the user has not set. Leaves the service running; a second run asks it again.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.commands.kill_demo import run_kill_demo
from cluster.commands.requests.smoke_test import run_smoke_test
from cluster.commands.start import start
from cluster.supervisor.service import Service, read_service
from cluster.terminal import Terminal
from config import Settings, load_settings

QUESTION = "What is the capital of France?"
MAX_TOKENS = 48
DEMO_SETTINGS = {"MODEL_REPO": "builtin:smollm2-135m", "LOCAL_RANKS": "2"}


def add_demo_settings(overrides: Mapping[str, str]) -> dict[str, str]:
    """The overrides, and the demo's settings for keys that are set nowhere."""
    is_set = load_settings(overrides).model_fields_set
    return {key: value for key, value in DEMO_SETTINGS.items() if key.lower() not in is_set} | dict(overrides)


def run_demo(
    settings: Settings, overrides: Mapping[str, str], terminal: Terminal, *, with_kill: bool = False
) -> int:
    """Start, ask, show; 0 if every rank took part in the answer (or the kill lost nothing)."""
    code = start(settings, overrides, terminal)
    service = read_service(settings)
    if code != 0 or service.api_address is None:
        return code or 1
    terminal.line()
    if with_kill:
        code = run_kill_demo(settings, terminal)
    else:
        code = run_smoke_test(settings, terminal, QUESTION, MAX_TOKENS)
    _show_next(service, terminal)
    return code


def _show_next(service: Service, terminal: Terminal) -> None:
    curl = (
        f"curl -X POST {service.url}/generate -H 'content-type: application/json' "
        """-d '{"prompt": "Write a sentence about the sea."}'"""
    )
    terminal.line()
    terminal.line("The service keeps running. Try it:")
    terminal.line(f"  {curl}")
    terminal.line(f"Page:    {service.url}/")
    terminal.line("Status:  ./launch.sh status")
    terminal.line("Stop:    ./launch.sh stop")
