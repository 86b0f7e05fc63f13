"""Studies: methods x imbalances x ratios x seeds from one YAML, run once each and kept."""
