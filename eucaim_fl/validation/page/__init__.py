"""The page on a validation: what a model is worth, where, for whom, and how sure that is."""

from eucaim_fl.validation.page.about import About, Signature
from eucaim_fl.validation.page.render import render_validation

__all__ = ["About", "Signature", "render_validation"]
