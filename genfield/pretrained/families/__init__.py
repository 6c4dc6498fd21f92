"""The families of published networks, one file each, with a record at its end."""
