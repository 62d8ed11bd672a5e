"""File formats of others: 3DGS point clouds (ply) and nerfstudio or VHAP data sets (transforms)."""
