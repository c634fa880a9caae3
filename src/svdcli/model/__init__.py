"""The network: tensors in, tensors out.

What it is: the spatio-temporal UNet, the temporal-decoder VAE, the CLIP image encoder, the one function that builds
conditioning, and bundles on disk. What it is not: noise levels, schedules and samplers, which live in `diffusion`.
Between rooms a clip is (B, T, C, H, W); it is folded to (B T, C, H, W), channels last, in here only.
"""
