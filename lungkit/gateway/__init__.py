"""What hospital systems and programs talk to: results as DICOM objects."""
