"""Leaderboards: methods of any studies, and evaluations of others, in one table that is made from their records."""
