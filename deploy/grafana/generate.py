"""Write the dashboards: `python -m deploy.grafana.generate`, in the root of the repository.

They are committed beside this; tests/contract/test_dashboards.py holds them equal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from deploy.grafana.boards.fleet import FLEET
from deploy.grafana.boards.heap import HEAP_BOARD
from deploy.grafana.boards.overview import OVERVIEW
from deploy.grafana.boards.sessions import SESSIONS_BOARD

BOARDS: Final = (OVERVIEW, HEAP_BOARD, SESSIONS_BOARD, FLEET)
DASHBOARDS: Final = Path(__file__).parent / "dashboards"


def rendered() -> dict[str, str]:
    """Return the text of each file."""
    return {f"{board.uid}.json": json.dumps(board.model(), indent=2) + "\n" for board in BOARDS}


def main() -> None:
    """Write them."""
    DASHBOARDS.mkdir(exist_ok=True)
    for name, text in rendered().items():
        (DASHBOARDS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
