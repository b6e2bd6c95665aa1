"""What runs passes: their base, the list and its manager, the check of the graph after each."""
