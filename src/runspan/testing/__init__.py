"""Run documents for tests and benchmarks, made from a seed."""

from .generate import generate

__all__ = ["generate"]
