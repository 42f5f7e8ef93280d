"""The price of SPOOL_DURABILITY=power: how it is worked out, and one small run with real services."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.contender import ROOT
from bench.durability import describe_rounds, price_of
from tests.checkpoints import make_checkpoint

LIMIT_S = 300.0


def test_the_price_is_the_share_that_power_loses() -> None:
    """Per round, so that a machine that grows slower tells nothing; negative where power was faster."""
    assert price_of(200.0, 190.0) == pytest.approx(0.05)
    assert price_of(100.0, 101.0) == pytest.approx(-0.01)
    lines = describe_rounds([{"process": 200.0, "power": 190.0, "price": 0.05}], 0.05)
    assert lines[-1] == "SPOOL_DURABILITY=power costs 5.0 % (median)"


@pytest.mark.long
def test_both_durabilities_are_measured_in_turn(tmp_path: Path) -> None:
    """Two rounds: every answer came, both rates are there, and no service is left."""
    model = make_checkpoint(tmp_path / "tiny", "ministral3")
    settings = {"MODEL_REPO": str(model), "LOCAL_RANKS": "2", "STATE_DIR": str(tmp_path / "state")}
    words = ("--clients", "3", "--asks", "1", "--rounds", "2", "--tokens", "8", "--json")
    ended = subprocess.run(
        [sys.executable, "-m", "bench", "durability", *words],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    data = json.loads(ended.stdout)
    assert len(data["rounds"]) == 2
    assert all(each["process"] > 0 and each["power"] > 0 for each in data["rounds"])
    assert not list((tmp_path / "state" / "bench").glob("service-*"))
