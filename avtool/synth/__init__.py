"""Synthetic people: heads of the baked model with painted skin, hair, clothes and light, drawn from many views. See dataset.py."""
