"""What answers mean: read as models write them, as keys that are equal where the answers are."""
