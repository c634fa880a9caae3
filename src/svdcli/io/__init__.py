"""Files <-> arrays: pictures, videos, latents, manifests and the names of what we write.

Import the module that you need; this file imports nothing, so that `svd --help` stays quick.
"""
