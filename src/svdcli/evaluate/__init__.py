"""Numbers about videos: feature-space distances between sets, and frame measures of one clip.

Here are the measures only. Which clips are compared, and with which protocol, is the caller's affair; no
number here is comparable with a paper unless features, frame count, frame rate, size and sample count are the
paper's.
"""
