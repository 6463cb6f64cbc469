"""Federated learning on cancer images that stay in their hospitals."""

__all__ = ["__version__"]

__version__ = "0.1.0"
