"""Models that forecast with a pretrained language model."""
