"""Fill a label store: rows and folds, then what teachers say of comparisons that they have not seen."""
