"""What a training asks of a machine, before it is rented: python -m genfield.plan --help."""
