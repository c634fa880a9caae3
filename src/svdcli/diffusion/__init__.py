"""The equations of sampling and training, and nothing else: no network, no file, no device choice.

`Denoise` (denoiser.py) is the one small callable that samplers, guidance and the loss know. The model, the
schedule and the sampler never import each other; the engine brings them together. Symbols are those of EDM
(Karras et al. 2022, arXiv 2206.00364) and of Stable Video Diffusion (arXiv 2311.15127, app. D.2): x is the
noisy state, sigma its noise level, D the denoised estimate, F the raw network, n unit normal noise, and the
latents of one clip are (T, C, h, w), scaled so that sigma_data = 1.
"""
