"""`svd eval prefer`: which of two videos do people like better?"""

from __future__ import annotations

import typer


def register(group: typer.Typer) -> None:
    pass
