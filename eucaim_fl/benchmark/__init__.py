"""Every model on the held-out patients of every source: local, pooled, Flower's FedAvg, and a recipe's methods."""
