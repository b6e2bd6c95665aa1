"""The model zoo: seeded builders of the networks that the tests, papers and demos use."""

if __name__ != "bnnopt.models":
    raise ImportError("import this package as bnnopt.models, not as models")

from bnnopt.models.zoo import ZOO, build, names

__all__ = ["ZOO", "build", "names"]
