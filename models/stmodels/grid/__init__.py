"""Models of the cells of a grid: convolutions over space, or a vector for each cell."""
