"""How the tables came to be, step by step; Store.upgrade() takes a database through the steps it lacks.

A new step is a file below versions/ (`revision`, `down_revision`, `upgrade()`): released steps are never changed.
tests/clinic/test_migrations.py prints what lungkit.clinic.records.tables has and the steps do not make.
"""
