if __name__ != "bnnopt.runtime":
    raise ImportError("import this package as bnnopt.runtime, not as runtime")
