"""The human preference study (SVD paper §3.2, app. E.1): plan, ask, rank.

    STUDY/study.json     models, prompts, comparisons and the right answers; nothing of it reaches a rater but what is asked
    STUDY/media/         the videos under names that say nothing
    STUDY/votes.sqlite   every vote, on disk before the page says thank you

`study` makes the first two, `votes` keeps the third, `server` and `page.html` ask, `ratings` ranks, `exchange` talks to
crowd platforms.
"""
