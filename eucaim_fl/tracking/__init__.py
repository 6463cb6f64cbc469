"""What is kept of a run outside its folder: MLflow, provenance, and the list of runs.

Nothing is imported here: MLflow costs seconds and lives in a process of its own (`sidecar`).
"""

__all__: list[str] = []
