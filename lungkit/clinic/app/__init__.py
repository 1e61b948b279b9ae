"""The screens of the clinic: plain widgets over the records and models; rights are checked in the records."""
