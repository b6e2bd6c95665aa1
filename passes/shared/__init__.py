"""What several passes use: moving nodes and readers, precisions, rebuilding, pooling."""
