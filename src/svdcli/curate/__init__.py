"""Curation: raw footage in, a dataset worth training on out (SVD paper §3.1, app. C).

A curation folder holds everything that is known, so that any command goes on where any other stopped:

    curation.json         the recipe, resolved
    journal/*.jsonl       what is done and what failed, one line an item, appended by each worker
    tables/sources/       Parquet parts, a row a source (`rows.Source`)
    tables/clips/         a row a clip (`rows.CutClip`)
    tables/scores/NAME/   a row a clip, what annotator NAME measured, or why it could not
    clips/ab/ID.mp4       the clips, by the first two letters of their id
    proxies/ab/ID.npz     small frames of a clip (`proxy.Proxy`): annotators read these, nothing is decoded twice
    filter.lock.json      the thresholds, frozen
    selection.parquet     a row a clip: kept, or dropped by which filter, or stood for by which other clip
    report.html           all of it on one page
    dataset/              shards and index, as `svd train` reads them

Ids come from contents and integer time stamps, never from positions or names: a source is the hash of its bytes, a
clip its source and its first and last tick. All times are integer ticks of a time base; seconds are for people.

Where to look: `run` takes the inputs through the stages, `split` cuts them, `annotate` measures the clips, `select` chooses,
`packing` writes the dataset, `pages` shows it all. What they share lies here: rows, tables, the journal, the proxy.
"""
