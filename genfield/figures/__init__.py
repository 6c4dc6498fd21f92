"""Every picture: of runs, of studies, of what data alone say; `style` is how they look."""
