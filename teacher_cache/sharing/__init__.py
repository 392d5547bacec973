"""Stores for others: packed, described and pushed to the hub; pulled from there or from a web server."""
