"""The numpy kernels: what every operator means, and what runs it where C does not.

They are the oracle of the compiled kernels, and loaded with the first step that needs one.
"""
