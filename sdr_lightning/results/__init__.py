"""Results of studies: their dataclasses, JSON form and loading."""
