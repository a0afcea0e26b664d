"""All that imports Pixeltable, but for :mod:`pixelmemory.projection.embed`."""
