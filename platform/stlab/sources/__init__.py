"""Raw records, as cities publish them, turned into data sets: trips into grids and zones, logs into sensors, others' files into ours."""
