"""Run documents for tests and benchmarks, generated from a seed."""

from .generate import generate

__all__ = ["generate"]
