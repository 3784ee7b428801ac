"""The storybox in training: a data source."""
