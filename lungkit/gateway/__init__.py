"""The gateway for programs: images in and results out over REST, with the clinic's records, models and reader.

It is a process of its own (`lungkit gateway`), so nothing that programs send can hold up a clinician's page.
"""
