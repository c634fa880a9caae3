"""Which clips are kept: thresholds over DuckDB's view of the tables, frozen in a lock; the study of thresholds."""
