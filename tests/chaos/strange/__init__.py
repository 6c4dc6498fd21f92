"""Files from strangers: every reader of the package, changes of files, and what is watched."""
