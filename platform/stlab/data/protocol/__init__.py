"""The protocol of a data set: split, scaler, missing readings, season."""
