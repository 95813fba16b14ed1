"""Reports: HTML pages, figures, pictures of structures, terminal tables."""
