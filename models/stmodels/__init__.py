"""stmodels: spatio-temporal forecasting models in plain PyTorch. No engine, no tracking, no files."""
