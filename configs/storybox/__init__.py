"""Recipes of the storybox, the world of drawings."""
