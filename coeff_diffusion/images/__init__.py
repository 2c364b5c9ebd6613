"""Picture files: their chunks, what they say of how they were drawn, grids."""
