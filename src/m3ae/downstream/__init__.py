"""Fine-tuning: rows, models, frozen encoders, selection, predictions, ranking."""

# Raised by hand with a change that can change a run's numbers; cells of run_tables.py carry it.
VERSION = 2
