"""Data sets of every place, format and form that the runner knows, brought to one file of canonical rows."""
