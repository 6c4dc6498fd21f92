"""Figures of merit for what was generated."""
