"""What the pages of `svd eval` share: their look by day and by night, and how a figure with its interval is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1d1f21; --soft: #666; --paper: #fff; --card: #f6f7f8;
       --good: #006b4f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #aaa; --paper: #16181a; --card: #202327;
       --good: #5fd3a8; --bad: #ff9d92; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1280px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem }
p { margin: .3rem 0 } small { color: var(--soft) } .good { color: var(--good) } .bad { color: var(--bad) }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto }
td, th { text-align: left; padding: .2rem 1.1rem .2rem 0; vertical-align: top; white-space: nowrap }
.row { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)) }
figure { margin: 0; padding: .5rem; background: var(--card); border-radius: 8px } figcaption { font-size: .85rem }
svg { width: 100%; height: auto; display: block } svg text { font: 11px system-ui, sans-serif; fill: var(--soft) }
svg .title { font-size: 13px; font-weight: 600; fill: var(--ink) }
video, img { width: 100%; border-radius: 4px; display: block }
footer { color: var(--soft); font-size: .8rem; margin: 2.5rem 0 }
"""


def figure(row: Mapping[str, Any] | None) -> str:
    """A mean with its interval and number, as HTML; a dash where nothing was measured. One video has no interval."""
    if row is None:
        return "&ndash;"
    interval = "" if math.isnan(row["low"]) else f"{row['low']:.4g} to {row['high']:.4g}, "
    return f"{row['mean']:.4g} <small>{interval}n {row['num']}</small>"
