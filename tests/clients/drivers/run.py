"""Runs the flows of a driver in the client's own environment: `python run.py DRIVER`.

A flow is a public function of the driver. The last line of output is a JSON object with the name of each flow
and its traceback, empty where it works. tests/clients/clients.py sets the environment.
"""

import importlib
import inspect
import json
import os
import sys
import traceback


def run(driver: str) -> dict[str, str]:
    """Run all flows; return each name with its traceback."""
    module, found = importlib.import_module(driver), {}
    for name, flow in vars(module).items():
        if inspect.isfunction(flow) and flow.__module__ == driver and not name.startswith("_"):
            try:
                flow()
                found[name] = ""
            except Exception:  # noqa: BLE001 - a flow that fails does not end the others
                found[name] = traceback.format_exc()
    return found


if __name__ == "__main__":
    print("\n" + json.dumps(run(sys.argv[1])), flush=True)
    os._exit(0)  # some clients leave threads
