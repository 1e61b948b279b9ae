"""A run as a study: what it was made with, its report, its plan, and all of it in one archive."""
