"""A study as a job on a Ray cluster: what is checked and packed here, and how the job is followed and stopped."""
