if __name__ != "bnnopt.passes":
    raise ImportError("import this package as bnnopt.passes, not as passes")
