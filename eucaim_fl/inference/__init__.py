"""Frozen models: brought in as data (`bundles`), checked (`onnx_file`), and run in a locked process (`sandbox`)."""
