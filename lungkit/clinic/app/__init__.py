"""The screens of the clinic: plain widgets over records, models and oversight; rights are checked below, not here."""
