"""Images come into a cohort from folders, ZIP files, DICOMweb archives and C-STORE senders; see `landing` for how."""
