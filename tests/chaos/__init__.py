"""Nothing lost: every mode of the program under faults that are drawn from a seed."""
