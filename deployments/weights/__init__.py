"""A model's files: from the Hugging Face hub or from other hosts, checked by content."""
