"""Tables of a study report as plain values."""
