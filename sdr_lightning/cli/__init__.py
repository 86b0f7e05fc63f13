"""The command line: ``sdr fit | validate | test | extract | reproduce | report``."""
