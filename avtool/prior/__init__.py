"""The generalizable Gaussian prior of HeadGAP: GAPNet, identity codebook, refiner; training, inversion, fine-tuning."""

from avtool.prior.avatar import Avatar
from avtool.prior.prior import Prior

__all__ = ["Avatar", "Prior"]
