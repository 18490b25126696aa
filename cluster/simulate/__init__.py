"""The autoscaling policy on a simulated fleet."""
