"""ST-VLM: sensor networks as correlation images for a frozen vision-language model (Zhao et al.)."""
