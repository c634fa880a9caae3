"""Stable Video Diffusion from raw footage to measured videos.

Shape legend, used by every docstring: B batch, T frames, V views, C channels, H W pixels, h w latent, N tokens, D width.
"""

__version__ = "0.1.0"
