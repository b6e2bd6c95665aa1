"""The compiler: from a file to a folder that a device runs."""

from bnnopt.compiler.building import summarize
from bnnopt.compiler.pipeline import Optimized, optimize
from bnnopt.settings import Settings

__all__ = ["Optimized", "Settings", "optimize", "summarize"]
