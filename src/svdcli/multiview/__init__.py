"""Objects, orbits around them, and the point clouds that views give back. Needs no model; alone imports open3d.

    cameras.py       the camera convention, orbits, what projects where
    transforms.py    cameras as nerfstudio's transforms.json; colmap.py as COLMAP's sparse model
    meshes.py        a mesh file -> parts with materials, upright, largest side 1 (gltf.py checks before loading)
    light.py, texture.py, render.py    a mesh and cameras -> RGBA, depth, normals
    views.py         a folder of views -> pictures, masks, cameras
    hull.py, ends.py, sweep.py, fusion.py, colour.py, points.py    views -> points; export.py writes them
    consistency.py   how well views agree with one another, without any weights
    objaverse.py, mvimgnet.py          data sets of objects -> orbits to train on

Letters: V views, N points, F faces, H W pixels. Colours are sRGB where stored and linear where light is added up.
"""
