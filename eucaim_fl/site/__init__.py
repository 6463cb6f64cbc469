"""The hospital's side: what it does when asked, and what it lets out. Knows nothing of Flower."""
