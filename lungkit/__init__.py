"""lungkit: research workbench that classifies lung infections on chest CT and chest X-ray.

Research use only; not a medical device.
"""

__version__ = "0.2.0"
