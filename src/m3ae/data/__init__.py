"""Prepared data: shards, images, texts, masks, batches and their order."""

# Raised by hand with a change that can change a run's numbers; cells of run_tables.py carry it.
VERSION = 1
