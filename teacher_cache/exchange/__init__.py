"""Caches of other toolkits: imported into a store, and stores exported for them."""
