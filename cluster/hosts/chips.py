"""How fast a Mac's chip reads memory, by its name: what a stage's time goes by while it decodes.

Apple's published figures, of a chip's larger variant where there are two. A chip that is not here counts
as any other. Nothing was measured: only a Mac can prove that stages take their time by these.
"""

from __future__ import annotations

# GB/s
BANDWIDTHS = {
    "Apple M1": 68,
    "Apple M1 Pro": 200,
    "Apple M1 Max": 400,
    "Apple M1 Ultra": 800,
    "Apple M2": 100,
    "Apple M2 Pro": 200,
    "Apple M2 Max": 400,
    "Apple M2 Ultra": 800,
    "Apple M3": 100,
    "Apple M3 Pro": 150,
    "Apple M3 Max": 400,
    "Apple M3 Ultra": 819,
    "Apple M4": 120,
    "Apple M4 Pro": 273,
    "Apple M4 Max": 546,
    "Apple M5": 153,
}


def read_bandwidth(chip: str) -> float | None:
    """GB/s of a chip; None where it is not known."""
    found = BANDWIDTHS.get(chip.strip())
    return None if found is None else float(found)
