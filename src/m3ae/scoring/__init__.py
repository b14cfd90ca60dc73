"""What is right, how often, and how sure: from predictions alone, with numpy and scipy."""

# Raised by hand with a change that can change a run's numbers; cells of run_tables.py carry it.
# Measures select epochs, so this room is among them.
VERSION = 1
