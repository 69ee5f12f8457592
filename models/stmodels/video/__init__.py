"""Models that predict the next frames of a video: a grid is an image, and its channels are colours."""
