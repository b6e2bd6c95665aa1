"""The calls of the compiled kernels, in the families of `reference`.

A call writes into arrays that the caller owns and says whether it did: it covers one layout and
dtype, and where it does not, the caller takes the numpy kernel of the same operator.
"""
