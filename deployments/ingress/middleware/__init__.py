"""What every API request passes through, from the outside in."""
