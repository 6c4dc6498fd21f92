"""Images to latents, or to small pixels, once: `python -m genfield.prepare`."""
