"""What the clinic keeps: accounts, patients, cases, reviews and the audit trail, in one database."""
