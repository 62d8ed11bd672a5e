"""avtool: from a few photos of a person to a head avatar that a video can drive."""

__version__ = "0.1.0"
