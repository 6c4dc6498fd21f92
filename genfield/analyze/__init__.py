"""What the data alone say about a loss: exact studies of a finite set of images, no training.

Distance Marching, arXiv:2602.02928, sections 4.1 and 4.3; `python -m genfield.analyze` runs them.
"""
