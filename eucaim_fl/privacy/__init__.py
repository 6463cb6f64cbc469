"""What noise promises: accounting, budgets, and what a plan costs. Values in, values out."""
