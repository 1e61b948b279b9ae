"""What programs and hospital systems talk to: images in and results out over REST, and results as DICOM objects.

The gateway is a process of its own (`lungkit gateway`) with the clinic's records, models and reader. Nothing that
programs send can hold up a clinician's page.
"""
