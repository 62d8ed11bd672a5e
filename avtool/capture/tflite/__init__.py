"""Runs .tflite graphs in torch: a reader of the file format, the operators that face models use, and an executor."""

from .executor import TfliteModel

__all__ = ["TfliteModel"]
