"""Models that come with the repository, and the scripts that make them."""
