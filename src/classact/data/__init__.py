"""Demonstrations: types, schema, action spaces, images, and a reader per format."""
