if __name__ != "bnnopt.models":
    raise ImportError("import this package as bnnopt.models, not as models")
