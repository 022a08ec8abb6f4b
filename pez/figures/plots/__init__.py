"""Pictures of scores by layer, and the style that they share."""
