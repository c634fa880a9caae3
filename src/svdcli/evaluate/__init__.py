"""How good videos are: measures, protocols, comparisons, and what people prefer. What `svd eval` runs.

    frechet.py, i3d.py, networks.py    distances between sets, and the features that they are measured in
    protocols.py, features.py, fvd.py, explain.py    FVD as a whole: which clips, kept features, the result, what compares
    frames.py, measures.py, motion_response.py    one clip: steadiness, fidelity, motion asked and measured
    similarity.py, lpips.py, clip_similarity.py, orbits.py, views.py    novel views against true ones
    geometry.py, shapes.py    clouds and meshes against true ones, and their files
    cases.py, model_report.py, model_page.py    one model by all of it: held-out clips, every measure, the page
    compare.py, results.py, page.py    several models side by side; thresholds; what pages share
    prefer/    the human study: plan, page, votes, ratings
    rank.py    the best of several clips of one picture (`svd sample --rank`)

No figure here is comparable with a paper's unless protocol, network and number of videos are the paper's; results say so.
"""
