"""Figures of a report, drawn without pyplot."""
