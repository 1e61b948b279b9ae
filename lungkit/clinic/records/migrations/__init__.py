"""The steps that make the tables; maintenance.upgrade runs those that a database has not had yet.

A new step is a new file in versions/ (`revision`, `down_revision`, `upgrade()`); released steps never change.
tests/clinic/test_migrations.py prints the differences between these steps and lungkit.clinic.records.tables.
"""
