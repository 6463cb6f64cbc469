"""Metrics, their pooling over sites, their intervals, and the report."""
