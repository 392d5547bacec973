"""`export-model`: what training wrote, averaged, merged into its base and quantised."""
