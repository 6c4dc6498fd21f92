"""A small autoencoder of one's own images: python -m genfield.autoencoder --images=… --out=…"""
