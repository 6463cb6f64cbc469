"""What in a cohort's files, names and tables can still name a person, and how to write clean copies."""
