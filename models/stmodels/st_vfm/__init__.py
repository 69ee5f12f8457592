"""ST-VFM: a frozen vision foundation model reprogrammed to forecast grids (arXiv 2507.11558)."""
