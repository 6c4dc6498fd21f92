"""What any training run needs: a mesh, checkpoints, signals, a logbook, tables."""
