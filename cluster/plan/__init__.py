"""The capacity planner: what a model takes of a card, and how many replicas a load needs."""
