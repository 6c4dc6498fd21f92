"""The pictures of docs/gallery.md, a function each: draw(path, budget) -> path."""
