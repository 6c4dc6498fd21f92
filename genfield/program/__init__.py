"""What turns a configuration into a run, and a run into figures and files."""
