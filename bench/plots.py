"""What all pictures share: matplotlib without a display, colours, and files that depend on the data alone.

matplotlib is installed when a picture is first asked for (bench/requirements-plots.txt).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.contender import BenchError
from cluster import packages
from cluster.errors import ClusterError

REQUIREMENTS = "bench/requirements-plots.txt"
# Told apart by people who see few colours (Okabe and Ito).
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")


def new_figure(*, width: float, height: float) -> tuple[Any, Any]:
    """A figure with one pair of axes, in inches.

    Raises:
        BenchError: matplotlib is not here and cannot be installed.
    """
    try:
        packages.ensure(REQUIREMENTS, [])
    except ClusterError as error:
        raise BenchError(str(error)) from None
    import matplotlib

    matplotlib.use("Agg")
    # Without these an SVG has random ids and its time of making.
    matplotlib.rcParams.update({"svg.hashsalt": "ring", "font.size": 9, "axes.spines.top": False})
    matplotlib.rcParams.update({"axes.spines.right": False, "axes.axisbelow": True})
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def save_figure(figure: Any, path: Path) -> None:
    """Write the file; its ending is its kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    try:
        figure.savefig(path, dpi=130, metadata=metadata)
    except ValueError as error:
        raise BenchError(f"{path} cannot be written: {error}") from None
