"""An LSTM encoder-decoder for each node of a sensor network by itself: the plain recurrent reference."""
