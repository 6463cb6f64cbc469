"""A hospital's files: layouts, DICOM, NIfTI, labels, preprocessing, cache; and the writers of demo cohorts."""
