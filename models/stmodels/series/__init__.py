"""An LSTM encoder-decoder that forecasts each node of a sensor network by itself, as the plain recurrent reference."""
