"""Results of studies: one schema, how they are read, and checked fields of their files."""
