"""The transformer, its toggles, its objectives, and weights in and out."""
