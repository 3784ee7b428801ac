"""What `mv2 plan` is made of: which programs there are, what they cost, and what would be best."""
