"""The frame of the report: its order, its colours by day and by night."""

from __future__ import annotations

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title · curation</title>
<style>
:root { color-scheme: light dark; --ink: #1d1f21; --soft: #63686e; --paper: #fff; --card: #f5f6f7; --line: #d9dcdf;
        --kept: #0072b2; --dropped: #d5865a; --mark: #b3261e }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #a5abb1; --paper: #15171a; --card: #202327;
        --line: #3a3f45; --kept: #56b4e9; --dropped: #c8763f; --mark: #ff8a80 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px;
       margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem } h3 { font-size: 1rem; margin: 0 }
h4 { font-size: .88rem; font-weight: 600; margin: .8rem 0 .3rem; overflow-wrap: anywhere }
p { margin: .3rem 0 } .note { color: var(--soft); font-size: .85rem; font-weight: 400 }
.summary { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0 }
.summary div { background: var(--card); border-radius: 8px; padding: .6rem 1rem; min-width: 9rem }
.summary b { display: block; font-size: 1.35rem } .summary span { color: var(--soft); font-size: .85rem }
.funnel .row { display: grid; grid-template-columns: 9.5rem 1fr 14rem; gap: 0 .8rem; align-items: center; padding: .22rem 0 }
.funnel .name { font-weight: 600; overflow-wrap: anywhere } .funnel .amount { font-variant-numeric: tabular-nums }
.funnel .track { background: var(--card); border-radius: 4px; height: 1.15rem; overflow: hidden }
.funnel i { display: block; height: 100%; background: var(--kept) }
.funnel .words { grid-column: 2 / 4; color: var(--soft); font-size: .82rem }
.axis { background: var(--card); border-radius: 10px; padding: .9rem 1rem 1rem; margin: 0 0 1rem;
        display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 0 1.2rem }
.axis h3, .axis > .note, .axis > figure { grid-column: 1 / 3 } .axis > figure { margin: .6rem 0 0; max-width: 760px }
figure { margin: 0 } svg { width: 100%; height: auto; display: block }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft) } svg .mark { stroke: var(--mark); stroke-width: 1.5 }
svg text.mark { fill: var(--mark); stroke: none; font-weight: 600 } svg .axis { stroke: var(--line) }
svg .kept { fill: var(--kept) } svg .dropped { fill: var(--dropped) }
svg .mixed { fill: var(--dropped); opacity: .5 }
.sheet { border-top: 3px solid var(--kept); margin-top: .8rem } .sheet.dropped { border-color: var(--dropped) }
.thumbs { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 8px }
.thumbs img { width: 100%; aspect-ratio: 16 / 9; object-fit: contain; background: #0006; border-radius: 4px; display: block }
.thumbs.pairs { grid-template-columns: repeat(auto-fill, minmax(232px, 1fr)) }
.pairs figure > span { display: grid; grid-template-columns: 1fr 1fr; gap: 3px }
figcaption { color: var(--soft); font-size: .78rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.gone { display: grid; place-items: center; height: 58px; border: 1px dashed var(--line); border-radius: 4px;
        color: var(--soft); font-size: .75rem; padding: 0 .4rem }
.strip { display: flex; overflow-x: auto; gap: 4px; padding-bottom: .5rem }
.strip figure { flex: none; display: grid; grid-template-columns: auto auto auto; align-items: stretch; background: var(--card);
        border-radius: 6px; padding: 4px }
.strip figure > span:nth-child(2) { display: flex; gap: 2px } .strip img { height: 68px; display: block; border-radius: 3px }
.strip .cut { writing-mode: vertical-rl; transform: rotate(180deg); text-align: center; font-size: .7rem; color: var(--mark) }
.strip figcaption { grid-column: 1 / 4; text-align: center }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .88rem }
td, th { text-align: left; padding: .18rem .9rem .18rem 0; vertical-align: top; font-weight: 400 }
tr:first-child th, th:first-child { color: var(--soft) }
.square td { font-variant-numeric: tabular-nums } .square .self { font-weight: 600 } td.r { color: var(--soft) }
details { background: var(--card); border-radius: 8px; padding: .5rem .8rem; margin: .4rem 0; overflow-wrap: anywhere }
summary { cursor: pointer } code, pre { font: .82rem ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap }
pre { background: var(--card); padding: .7rem; border-radius: 8px }
footer { color: var(--soft); font-size: .8rem; margin: 2.5rem 0 }
@media (max-width: 720px) { .axis { grid-template-columns: 1fr } .axis h3, .axis > .note, .axis > figure { grid-column: 1 }
        .funnel .row { grid-template-columns: 1fr 1fr } .funnel .track { grid-column: 1 / 3; grid-row: 2 }
        .funnel .words { grid-column: 1 / 3 } }
</style></head><body>
<h1>$title</h1>
<div class="summary">$summary</div>
<h2 id="funnel">Where the footage went</h2>
<p class="note">Bars are seconds. What is left behind each step; a clip is dropped by the first filter that it falls to.</p>
$funnel
<h2 id="filters">What each filter keeps and drops, at its threshold</h2>
<p class="note">The clips nearest to the threshold, nearest first, with their score; behind the dot the filter that
accounts for them.</p>
$filters
<h2 id="overlaps">Filters against each other</h2>
<p class="note">On the diagonal the clips that a filter would drop alone; below it those that both would; above it the
correlation of the scores.</p>
$overlaps
<h2 id="cuts">Cuts</h2>
<p class="note">First and last frame of each clip, with what it begins and ends at; of the sources with most clips.</p>
$cuts
<h2 id="statistics">Figures</h2>
$statistics
<h2 id="failures">What was not done</h2>
$failures
<h2 id="lock">Frozen thresholds</h2>
<details><summary>filter.lock.json</summary>$lock</details>
<footer>Written by svd curate report on $made.</footer>
</body></html>
""")
