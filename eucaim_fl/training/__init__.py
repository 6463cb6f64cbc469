"""Local training and evaluation of one model on one site's cases; knows nothing of sites, wires or files."""
