"""Monitoring: Prometheus' configuration and rules, alerts with a runbook, Grafana dashboards, and what runs and draws them."""
